"""Canonical JSON means one text for one content; file names and gates digests tell apart what differs."""

import contextlib
import hashlib
import json
import posixpath
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eecompile.bundle.digest import canonical_json, document_digest, document_layout, file_sha256, gates_digest
from eecompile.bundle.manifest import ExitInfo, ExitPolicy
from eecompile.bundle.paths import find_collision, is_outside_core, is_overlay, name_fault
from eecompile.bundle.strict import parse_object
from eecompile.errors import IntegrityError

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
documents = st.dictionaries(texts, values, max_size=4)


@given(documents)
def test_a_document_survives_its_layout(document: dict[str, Any]) -> None:
    data = document_layout(document)
    parsed = parse_object(data, Path("x"))
    assert parsed == document
    assert document_layout(parsed) == data
    assert document_digest(parsed) == document_digest(document)


@given(documents)
def test_the_digest_can_be_had_from_the_text(document: dict[str, Any]) -> None:
    """As the C++ reader does it: drop the whitespace outside strings and the digest, format nothing."""
    del_keys = {k: v for k, v in document.items() if k > "digest"}
    document = {**del_keys, "digest": "0" * 64, "core": "a"}
    text = document_layout(document).decode()
    outside = re.sub(r'("(?:[^"\\]|\\.)*")|\s+', lambda m: m[1] or "", text, flags=re.DOTALL)
    dropped = re.sub(r'"digest":"[0-9a-f]{64}",?', "", outside, count=1).replace(",}", "}")
    if not del_keys:
        dropped = '{"core":"a"}'
    assert hashlib.sha256(dropped.encode()).hexdigest() == document_digest(document)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_only_finite_numbers(value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"a": value})


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_an_object(data: bytes) -> None:
    with contextlib.suppress(IntegrityError):
        assert isinstance(parse_object(data, Path("x")), dict)


def test_files_are_hashed_in_pieces(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "f").write_bytes(data)
    assert file_sha256(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def exit_pair(layer: int = 3, gate: Any = None, **changes: Any) -> str:
    info = ExitInfo.model_validate({"layer": layer, "adapter": "norm", "gates": ["max_prob"], **changes})
    return gates_digest([info], [ExitPolicy(layer=layer, confident=None, draft=None, gate=gate)])


def test_gates_digests_tell_gates_apart() -> None:
    weights = {"units": 1, "w1": "AAAA", "b1": "", "w2": "", "b2": ""}
    learned = {"gates": ["learned"], "gate_units": 1}
    found = [
        exit_pair(),
        exit_pair(4),
        exit_pair(adapter="affine"),
        exit_pair(gates=["margin"]),
        exit_pair(**learned),
        exit_pair(gate=weights, **learned),
        exit_pair(gate={**weights, "w1": "AAAB"}, **learned),
    ]
    assert len(set(found)) == len(found)
    assert exit_pair() == found[0]
    with pytest.raises(ValueError, match="zip"):
        gates_digest([], [ExitPolicy(layer=1, confident=None, draft=None)])


def test_thresholds_do_not_count_in_gates_digests() -> None:
    info = ExitInfo(layer=3, adapter="norm", gates=["max_prob"])
    policies = [ExitPolicy(layer=3, confident=None, draft=draft) for draft in (None, {"max_prob": 0.5})]
    assert len({gates_digest([info], [p]) for p in policies}) == 1  # type: ignore[list-item]


@given(st.text(alphabet="a./\\:\n", max_size=12))
def test_legal_names_stay_inside(name: str) -> None:
    if name_fault(name) is None:
        assert posixpath.normpath(name) == name
        assert not name.startswith("/")
        assert ".." not in name.split("/")


def test_names() -> None:
    assert is_overlay("overlays/policy.json")
    assert is_overlay("overlays/calibration-fp32-catch_up-8.json")
    assert not is_overlay("overlays/calibration-.json")
    assert not is_overlay("overlays/profile-a/b.json")
    assert is_outside_core("manifest.json.sig")
    assert is_outside_core("overlays/profile-a.json.sig")
    assert not is_outside_core("segments/all.weights")
    assert find_collision(["a", "b", "a"]) is None
    assert find_collision(["strasse", "STRAßE"]) == ("strasse", "STRAßE")


def test_json_is_what_other_readers_expect() -> None:
    assert canonical_json({"b": [1, 0.5, None, True], "a": "é"}) == '{"a":"é","b":[1,0.5,null,true]}'.encode()
    assert json.loads(document_layout({"a": 1})) == {"a": 1}
