"""Every criterion, K/V rule, kind of exit and schedule in the C++ runtime, against the Python one; SLED and batches."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from cpp_parity import both, said, without_times, words_of
from tiny_kinds import ALLOWED, GAIN, KINDS, MODELS, RULES, cyclic_checkpoint, heads_of, thresholds_of

from eecompile import contract as c
from eecompile.bundle.digest import document_digest, document_layout
from eecompile.cli.many import result_json
from eecompile.errors import EECompileError
from eecompile.runtime import Bundle, Sampling
from eecompile.runtime.batch import run_all

GREEDY, WARM = Sampling(), Sampling(temperature=0.8, top_p=0.95, seed=7)


def built(shelf: Any, kind: str, precision: str = "fp32", slots: int = 1) -> Bundle:
    """The bundle of one of KINDS."""
    made = {name: value for name, value in KINDS[kind].items() if name != "settings"}
    found: Bundle = shelf.bundle(
        KINDS[kind].get("settings"), heads=heads_of(made["exits"]), precision=precision, gain=GAIN, slots=slots, **made
    )
    return found


def calibrated(opened: Bundle, target: Path, allowed: Sequence[Any], kv: str = "catch_up") -> Bundle:
    """A copy whose calibration allows these thresholds."""
    found: Bundle = tiny.calibrate(shutil.copytree(opened.files.path, target), allowed, kv)
    return found


def prompt_of(seed: int, length: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, tiny.VOCAB, length)]


@pytest.mark.parametrize(("kind", "precision"), [*((k, "fp32") for k in KINDS), ("all-few", "int4"), ("loops", "int4")])
def test_exits_of_every_kind(shelf: Any, command: Path, tmp_path: Path, kind: str, precision: str) -> None:
    """Exact mode with drafts made, kept and refused, and confident mode with tokens that leave at several depths."""
    opened = built(shelf, kind, precision)
    drafts, seen = thresholds_of(opened, 0.8), Counter[str]()
    for seed, (how, cap, length) in enumerate([(GREEDY, 8, 3), (WARM, 3, 140)]):
        found = both(command, opened, prompt_of(seed, length), 40, "exact", how, drafts, pending_cap=cap)
        seen.update(drafted=found["stats"]["drafted"], rejected=found["stats"]["rejected"])
    small = opened.manifest.exits[0].head != c.FULL_HEAD  # random ones may always be wrong
    assert seen["drafted"] >= seen["rejected"] > 0, seen
    assert seen["drafted"] > seen["rejected"] or small, seen
    bold = calibrated(opened, tmp_path / "bundle", list(drafts.values()))
    depths = Counter[int]()
    for seed, how in enumerate((GREEDY, WARM)):
        depths.update(both(command, bold, prompt_of(seed, 9), 60, "confident", how, {})["exit_layers"])
    both(command, bold, prompt_of(9, 140), 20, "confident", GREEDY, {1: None, 2: None})
    assert len(depths) > 1, depths


# -- K/V rules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_every_rule_for_skipped_layers(shelf: Any, command: Path, tmp_path: Path, model: str) -> None:
    opened: Bundle = shelf.bundle(at=[1, 2, 3], gain=GAIN, **MODELS[model])
    for rule in opened.manifest.kv_rules[1:]:
        own = calibrated(opened, tmp_path / rule, ALLOWED, rule)
        for seed, (how, cap) in enumerate([(GREEDY, 8), (WARM, 2)]):
            found = both(command, own, prompt_of(seed, 5), 70, "confident", how, {}, pending_cap=cap)
            assert len(set(found["exit_layers"])) > 1
        both(command, own, prompt_of(2, 135), 20, "confident", WARM, {}, kv=rule, pending_cap=3)
        both(command, own, prompt_of(3, 5), 12, "exact", GREEDY, dict(zip((1, 2, 3), ALLOWED, strict=True)))
        both(command, own, [7], None, "confident", GREEDY, {}, budget=150)


def test_a_rule_has_the_thresholds_that_were_calibrated_for_it(shelf: Any, command: Path, tmp_path: Path) -> None:
    opened: Bundle = shelf.bundle(at=[1, 2, 3], gain=GAIN, build=RULES)
    tiny.calibrate(shutil.copytree(opened.files.path, tmp_path / "b"), ALLOWED, "propagate")
    own = tiny.calibrate(tmp_path / "b", [{"max_prob": 0.5}, None, {"max_prob": 0.3}], "catch_up")
    for rule in ("catch_up", "propagate"):
        both(command, own, [3, 1, 4], 50, "confident", GREEDY, {}, kv=rule)
    both(command, own, [3], 50, "confident", GREEDY, {}, minimum_depth=2)
    words = ["--prompt-ids", "1", "--mode"]
    for more, status, message in (
        (["confident", "--kv", "selected"], 2, "no calibration of these exits for fp32 and selected"),
        (["confident", "--kv", "propagate", "--threshold", "1=0.9"], 2, "not the thresholds of a tested point"),
        (["exact", "--kv", "propagate"], 2, "propagate does not keep them"),
        (["full", "--kv", "other"], 2, "there is no K/V rule other"),
    ):
        done = said(command, own.files.path, *words, *more)
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert message in done.stderr
    plain = said(command, shelf.bundle(at=[1, 3], gain=GAIN).files.path, *words, "confident", "--kv", "selected")
    assert (plain.returncode, "no graphs for selected" in plain.stderr) == (2, True)


# -- cyclic gates ---------------------------------------------------------------------------------------------------


def cyclic(path: Path, precision: str, **options: Any) -> Bundle:
    """A bundle with an exit, some of whose rows run again and some do not."""
    source = cyclic_checkpoint(path / "checkpoint")
    found: Bundle = tiny.open_bundle(path / "bundle", source, [2], precision=precision, **options)
    return found


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_rows_that_run_again(command: Path, tmp_path: Path, precision: str) -> None:
    opened = cyclic(tmp_path, precision, minimum_rows=2 if precision == "fp32" else 1)
    both(command, opened, prompt_of(0, 140), 20, "full", GREEDY, {})
    rejected = 0
    for seed, how in enumerate((GREEDY, WARM)):
        found = both(command, opened, prompt_of(seed, 6), 50, "exact", how, {2: {"max_prob": 0.04}}, pending_cap=5)
        rejected += found["stats"]["rejected"]
        assert found["stats"]["segment_passes"] > 2 * 50
    assert rejected > 0


# -- SLED -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["learned-patience", "layers"])
@pytest.mark.parametrize("how", [Sampling(sled=True), Sampling(0.8, seed=5, sled=True, sled_rate=1.5)], ids=str)
def test_sled_evolves_the_same_logits(shelf: Any, command: Path, kind: str, how: Sampling) -> None:
    opened = built(shelf, kind)
    for length in (1, 6, 130):
        both(command, opened, prompt_of(length, length), 25, "full", how, {})


def test_sled_is_refused_where_it_makes_no_sense(shelf: Any, command: Path, tmp_path: Path) -> None:
    exits, none = shelf.bundle(at=[1, 3], gain=GAIN).files.path, shelf.bundle(gain=GAIN).files.path
    (tmp_path / "in.jsonl").write_text('{"prompt_ids": [1]}\n')
    file = ["--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", "--sled"]
    one = ["--prompt-ids", 1, "--sled"]
    for root, words, message in (
        (exits, [*one, "--mode", "exact"], "not in mode exact"), (none, one, "SLED needs exits"),
        (exits, [*one, "--sled-rate", 0], "evolution rate"), (exits, file, "SLED does not run in batches"),
    ):  # fmt: skip
        done = said(command, root, *words)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr


# -- batches --------------------------------------------------------------------------------------------------------


def batch_of(
    command: Path, opened: Bundle, root: Path, prompts: Sequence[list[int]], slots: int, mode: str, how: Sampling,
    thresholds: Mapping[int, Any], count: int, **more: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """Run a file of prompts in the C++ runtime, compare it with a batch of the Python one, and return the answers."""
    overrides: dict[str, Any] = {} if mode == "full" else {"thresholds": thresholds}
    batch, expected = opened.batch(slots=slots, mode=mode, **more, **overrides), dict[int, Any]()
    for one in run_all(batch, prompts, max_new_tokens=count, sampling=how):
        told = result_json(one.prompt_ids, one.ids, None, one.exit_layers, mode, one.stats)
        expected[one.number] = without_times(told)
    source, target = root / "prompts.jsonl", root / "answers.jsonl"
    source.write_text("".join(json.dumps({"prompt_ids": prompt}) + "\n\n" for prompt in prompts))
    words = ["--input", source, "--output", target, "--batch", slots, "--max-new-tokens", count]
    done = said(command, opened.files.path, *words, *words_of(opened, mode, how, thresholds, **more))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    found = [without_times(json.loads(line)) for line in target.read_text().splitlines()]
    assert found == [expected[number] for number in range(len(prompts))]
    return found


PROMPTS = [prompt_of(i, n) for i, n in enumerate([3, 140, 1, 30, 5, 60, 2, 9])]
BATCHES: Mapping[str, Any] = {
    "patience": ("fp32", 3), "all-few": ("int4", 4), "adaptive": ("fp32", 2), "layers": ("fp32", 3),
    "layers-gates": ("fp32", 5), "layers-padded": ("fp32", 3), "loops": ("int4", 3),
}  # fmt: skip


@pytest.mark.parametrize("kind", BATCHES)
def test_batches_are_the_python_runtimes(shelf: Any, command: Path, tmp_path: Path, kind: str) -> None:
    """Tokens, depths and passes; and every request's tokens are those that it has alone."""
    precision, slots = BATCHES[kind]
    opened = built(shelf, kind, precision, slots=5)
    drafts = thresholds_of(opened, 0.8)
    for how in (GREEDY, WARM):
        found = batch_of(command, opened, tmp_path, PROMPTS, slots, "exact", how, drafts, 25, pending_cap=4)
        for prompt, one in zip(PROMPTS[:3], found, strict=False):
            assert one["token_ids"] == tiny.tokens(opened, prompt, 25, how)
    batch_of(command, opened, tmp_path, PROMPTS[:4], slots, "full", GREEDY, {}, 9)


@pytest.mark.parametrize("rule", c.KV_RULES)
def test_batches_under_every_rule(shelf: Any, command: Path, tmp_path: Path, rule: str) -> None:
    opened: Bundle = shelf.bundle(at=[1, 2, 3], gain=GAIN, build=RULES, slots=4)
    own = calibrated(opened, tmp_path / "bundle", ALLOWED, rule)
    for how, cap in ((GREEDY, 2), (WARM, 8)):
        found = batch_of(command, own, tmp_path, PROMPTS, 4, "confident", how, {}, 30, pending_cap=cap)
        alone = said(command, own.files.path, "--prompt-ids", ",".join(map(str, PROMPTS[3])), "--max-new-tokens", 30,
                     "--json", *words_of(own, "confident", how, {}, pending_cap=cap))  # fmt: skip
        assert json.loads(alone.stdout)["token_ids"] == found[3]["token_ids"]
        assert json.loads(alone.stdout)["exit_layers"] == found[3]["exit_layers"]


def test_cyclic_gates_in_a_batch(command: Path, tmp_path: Path) -> None:
    opened = cyclic(tmp_path, "fp32", slots=3)
    batch_of(command, opened, tmp_path, PROMPTS[:5], 3, "exact", GREEDY, {2: {"max_prob": 0.04}}, 20)


def test_a_prompt_that_cannot_be_served_stops_no_other(shelf: Any, command: Path, tmp_path: Path) -> None:
    opened: Bundle = shelf.bundle(at=[1, 2, 3], gain=GAIN, build=RULES, slots=4)
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    ids = ['{"prompt_ids": [1, 2]}', '{"prompt_ids": [1, 999]}', '{"prompt_ids": []}', '{"prompt_ids": [5]}']
    source.write_text("\n".join([*ids[:3], "[", '{"text": "words"}', ids[3]]))
    words = ["--input", source, "--output", target, "--max-new-tokens", 6]
    done = said(command, opened.files.path, *words)
    assert done.returncode == 1, done.stderr
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert ["error" in line for line in found] == [False, True, True, True, True, False]
    assert "token id 999 is outside" in found[1]["error"]
    assert found[5]["token_ids"] == tiny.tokens(opened, [5], 6)
    for more, message in (
        (["--input", source], "--input and --output go together"), ([*words, "--json"], "--json and --stream"),
        ([*words, "--batch", 5], "5 slots are not from 1 to the bundle's 4"),
        (["--prompt-ids", 1, "--batch", 2], "--batch goes with --input"),
        ([*words, "--prompt-ids", 1], "give either a PROMPT or --prompt-ids, or a file"),
    ):  # fmt: skip
        refused = said(command, opened.files.path, *more)
        assert (refused.returncode, message in refused.stderr) == (2, True), refused.stderr


# -- refusals -------------------------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], Any]
FAULTS: Mapping[str, tuple[str, Change]] = {  # (bundle, what is changed in its manifest)
    "no-kv-graph": ("rules", lambda d: d["graphs"]["kv"].__setitem__(1, None)),
    "no-kv-graphs": ("rules", lambda d: d["graphs"].pop("kv")),
    "kv-of-other-layers": ("rules", lambda d: d["graphs"]["kv"][1].update(layers=2)),
    "a-rule-twice": ("rules", lambda d: d.update(kv_rules=["catch_up", "selected", "selected"])),
    "no-rule-for-positions": ("rules", lambda d: d.update(kv_rules=["catch_up", "propagate"])),
    "no-factors": ("loops", lambda d: d["schedule"][1].pop("factors")),
    "other-factors": ("loops", lambda d: d["schedule"][1].update(factors="segments/head.onnx")),
    "a-factor-of-any-size": ("loops", lambda d: _factor(d).update(shape=["N", 2])),
    "a-router-without-its-gate": ("all-few", lambda d: d["exits"][0]["gates"].remove("router")),
    "no-predictor": ("all-few", lambda d: d["exits"][1].update(predictor=None)),
    "a-router-of-few-choices": ("all-few", lambda d: d["exits"][1]["router"].update(choices=2)),
    "a-head-that-is-not-there": ("all-few", lambda d: d["exits"][1]["predictor"].update(head="other")),
    "no-time": ("decay", lambda d: d["exits"][0]["schedule"].update(tau=0)),
    "a-schedule-of-nothing": ("patience", lambda d: d["exits"][0].update(schedule={"kind": "decay"})),
    "a-layer-less": ("layers", lambda d: d["graphs"]["exits"][0].update(layers=0)),
    "a-cycle-at-the-end": (
        "patience", lambda d: d["schedule"][-1].update(cycle={"threshold": 0.5, "repeats": 1, "weights": "x"})
    ),
}  # fmt: skip


def _factor(document: dict[str, Any]) -> dict[str, Any]:
    inputs = [t for segment in document["graphs"]["segments"] for t in segment["inputs"]]
    found: dict[str, Any] = next(t for t in inputs if t["name"].startswith(c.LORA))
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_a_manifest_whose_parts_disagree_is_refused_by_both(
    shelf: Any, command: Path, tmp_path: Path, fault: str
) -> None:
    kind, change = FAULTS[fault]
    opened = shelf.bundle(at=[1, 2, 3], gain=GAIN, build=RULES) if kind == "rules" else built(shelf, kind)
    root = shutil.copytree(opened.files.path, tmp_path / "bundle")
    document = json.loads((root / c.MANIFEST).read_text())
    change(document)
    document["digest"] = document_digest(document)
    (root / c.MANIFEST).write_bytes(document_layout(document))
    with pytest.raises(EECompileError) as refused:
        Bundle.open(root, integrity="size")
    done = said(command, root, "--prompt-ids", 1, "--integrity", "size")
    assert (done.returncode, refused.value.exit_status, done.stdout) == (4, 4, ""), done.stderr
