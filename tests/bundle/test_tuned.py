"""Files of tuned gates: what is no such file, and gates that do not fit, are refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import HIDDEN, SAFE, UNITS

from eecompile import contract as c
from eecompile.bundle.gates import decode_gate, encode_gate
from eecompile.bundle.read import read_bundle
from eecompile.bundle.tuned import TunedGate, TunedGates, adopt_gates, read_tuned
from eecompile.errors import UsageError


def tuned(units: int = UNITS, layer: int = 1, draft: Any = SAFE) -> TunedGates:
    rng = np.random.default_rng(8)
    shapes = ((HIDDEN, units), (units,), (units, 1), (1,))
    gate = encode_gate(*(rng.standard_normal(shape).astype(np.float32) for shape in shapes))
    return TunedGates(exits=[TunedGate(layer=layer, gate=gate, draft=draft)])


def test_gates_go_in_and_confident_mode_is_closed(bundle: Path, tmp_path: Path) -> None:
    file, before = tmp_path / "gates.json", read_bundle(bundle)
    assert before.policy.exits[0].confident is not None
    file.write_text(tuned().model_dump_json())
    policy = adopt_gates(bundle, read_tuned(file))
    after = read_bundle(bundle)
    assert after.policy == policy
    assert policy.exits[0].gate == tuned().exits[0].gate != before.policy.exits[0].gate
    assert (policy.exits[0].confident, policy.exits[0].draft) == (None, SAFE)
    assert "calibrate" in policy.exits[0].reason
    assert after.manifest == before.manifest
    assert policy.exits[0].gate is not None
    assert decode_gate(policy.exits[0].gate, HIDDEN)["w1"].shape == (HIDDEN, UNITS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (tuned(units=UNITS + 1), "4 units where the bundle's has 3"),
        (tuned(layer=2), "no exit after layer 2"),
        (tuned(draft={"learned": 0.5}), "draft: thresholds for"),
        (tuned(draft={"learned": 1.5, "max_prob": 0.0}), "learned 1.5 is outside"),
    ],
)
def test_gates_that_do_not_fit(bundle: Path, given: TunedGates, message: str) -> None:
    before = (bundle / c.POLICY).read_bytes()
    with pytest.raises(UsageError, match=message):
        adopt_gates(bundle, given)
    assert (bundle / c.POLICY).read_bytes() == before


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"kind": "gates", "exits": []}', '{"kind": "policy"}'])
def test_what_is_no_file_of_gates(tmp_path: Path, text: str) -> None:
    file = tmp_path / "gates.json"
    file.write_text(text)
    with pytest.raises(UsageError, match="not a file of gates"):
        read_tuned(file)
    with pytest.raises(UsageError, match="cannot be read"):
        read_tuned(tmp_path / "nothing.json")


def test_unknown_keys_and_numbers_that_are_none_are_refused(tmp_path: Path, bundle: Path) -> None:
    file, given = tmp_path / "gates.json", json.loads(tuned().model_dump_json())
    file.write_text(json.dumps({**given, "more": 1}))
    with pytest.raises(UsageError, match="more"):
        read_tuned(file)
    given["exits"][0]["gate"] = encode_gate(
        *(np.full(s, np.nan, np.float32) for s in ((HIDDEN, UNITS), (UNITS,), (UNITS, 1), (1,)))
    ).model_dump()
    file.write_text(json.dumps(given))
    with pytest.raises(UsageError, match="not finite"):
        adopt_gates(bundle, read_tuned(file))
