"""The C++ runtime against the Python one, token for token and pass for pass; and what it refuses."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from core_files import replace_file
from cpp_parity import both, said

from eecompile import contract as c
from eecompile.bundle.digest import document_digest, document_layout
from eecompile.errors import EECompileError
from eecompile.runtime import Bundle, Sampling
from eecompile.shapes import HeadShape
from eecompile.student.exits import ExitSpec

GAIN = 0.35  # layers that add little: exits agree with the last layer about half of the time
LEARNED = ["learned", "max_prob"]
KINDS: Mapping[str, Mapping[str, Any]] = {  # what the bundles are made of, by name
    "llama": {},
    "llama-fused": {"settings": tiny.variants()["llama-fused"]},
    "gemma2": {"settings": tiny.variants()["gemma2"], "gates": [["margin"], ["entropy"]]},
    "gpt2": {"settings": tiny.variants()["gpt2"], "gates": [["entropy", "margin"], ["max_prob"]]},
    "qwen2-window": {"settings": tiny.variants()["qwen2-window"], "minimum_rows": 2},
    "learned": {"gates": [LEARNED, ["learned"]], "adapter": "affine"},
    "heads": {"gates": [["max_prob"], ["margin"]], "heads": ["small", "short"]},
    "caches": {"build": {"cache": "int8"}},
    "halves": {"build": {"cache": "fp16"}, "settings": tiny.config("qwen3", head_dim=16)},
    "no-exits": {"exits": []},
}
HEADS = [
    HeadShape(name="small", kind="low_rank", rank=32),
    HeadShape(name="short", kind="shortlist", tokens=[*range(60)]),
]
DRAFTS = {"max_prob": 0.04, "margin": 0.02, "entropy": 4.5, "learned": 0.3}


def built(shelf: Any, kind: str, precision: str) -> Bundle:
    """The bundle of one of KINDS, with exits after layers 1 and 3."""
    made = KINDS[kind]
    gates, heads = made.get("gates", [["max_prob"], ["max_prob"]]), made.get("heads", [c.FULL_HEAD] * 2)
    exits = made.get("exits", [
        ExitSpec(layer=layer, adapter=made.get("adapter", "norm"), gates=own, head=head,
                 gate_units=8 if "learned" in own else 0)
        for layer, own, head in zip([1, 3], gates, heads, strict=True)
    ])  # fmt: skip
    shapes = HEADS if "heads" in made else []
    found: Bundle = shelf.bundle(
        made.get("settings"), exits=exits, heads=shapes, precision=precision, gain=GAIN,
        minimum_rows=made.get("minimum_rows", 1), build=made.get("build"),
    )  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("kind", "precision"),
    [(k, p) for k in KINDS for p in tiny.PRECISIONS if p in ("fp32", "int4") or k in ("llama", "learned", "caches")],
)
def test_tokens_are_the_python_runtimes(shelf: Any, command: Path, kind: str, precision: str) -> None:
    """Full mode, and exact mode with drafts made and refused, greedy and sampled, prompts of one chunk and of two."""
    opened, seen = built(shelf, kind, precision), Counter[str]()
    rng = np.random.default_rng([*kind.encode(), *precision.encode()])
    drafts: dict[int, Any] = {e.layer: {gate: DRAFTS[gate] for gate in e.gates} for e in opened.manifest.exits}
    for mode, sampled in (("full", False), ("exact", False), ("exact", True)):
        prompt = rng.integers(0, tiny.VOCAB, rng.integers(1, 150)).tolist()
        seed = int(rng.integers(0, 1 << 40))
        how = Sampling(0.9, int(rng.choice([0, 7])), float(rng.choice([1.0, 0.8])), seed) if sampled else Sampling()
        cap = {} if mode == "full" else {"pending_cap": int(rng.integers(1, 9))}
        found = both(command, opened, prompt, int(rng.integers(20, 80)), mode, how, drafts, **cap)
        seen.update(drafted=found["stats"]["drafted"], rejected=found["stats"]["rejected"])
    if drafts:
        assert seen["drafted"] >= seen["rejected"] > 0, seen
        assert seen["drafted"] > seen["rejected"] or kind == "heads", seen  # random small heads may always be wrong


@pytest.mark.parametrize("gates", [["max_prob"], LEARNED, ["entropy", "margin"]], ids=str)
def test_confident_mode_exits_where_the_python_runtime_does(
    shelf: Any, command: Path, tmp_path: Path, gates: list[Any]
) -> None:
    exits = [ExitSpec(layer=n, adapter="norm", gates=gates, gate_units=8 if "learned" in gates else 0) for n in (1, 3)]
    source = shelf.checkpoint(exits=exits, gain=GAIN)
    opened = tiny.calibrate(tiny.bundle_at(tmp_path / "bundle", source), [{g: DRAFTS[g] for g in gates}] * 2)
    own = {e.layer: e.confident for e in opened.files.policy.exits}
    for how in (Sampling(), Sampling(temperature=0.7, seed=5)):
        found = both(command, opened, [3, 1, 4, 1, 5], 60, "confident", how, own)
        assert {1, 4} <= set(found["exit_layers"])
    both(command, opened, [9] * 40, None, "confident", Sampling(), own, budget=600)
    both(command, opened, [2], 30, "confident", Sampling(), {1: None, 3: own[3]}, minimum_depth=2)
    bolder = said(
        command, opened.files.path, "--prompt-ids", 1, "--mode", "confident", "--threshold", f"1:{gates[0]}=0"
    )
    assert (bolder.returncode, "calibrat" in bolder.stderr) == ((2, True) if gates[0] != "entropy" else (0, False))


def test_a_text_ends_at_the_models_end_in_every_mode(shelf: Any, command: Path) -> None:
    """The end drafted by an exit is verified at once; a full context ends a request too."""
    settings = tiny.config(eos_token_id=[7, 40, 90, 101, 120, 3, 55], max_position_embeddings=64)
    opened = shelf.bundle(settings, [1, 3], gain=GAIN)
    reasons = set()
    for start in range(12):
        for mode in ("full", "exact"):
            found = both(
                command, opened, [start, 5], None, mode, Sampling(), {1: {"max_prob": 0.02}, 3: {"max_prob": 0.0}}
            )
            reasons.add((mode, found["stop_reason"]))
    assert {("full", "stop"), ("exact", "stop")} <= reasons


def test_text_goes_in_and_comes_out(command: Path, tmp_path: Path) -> None:
    settings = tiny.config(vocab_size=tiny.TOKENIZER_IDS + 3, eos_token_id=tiny.TOKENIZER_IDS - 1)
    source = tiny.add_tokenizer(tiny.checkpoint(tmp_path / "checkpoint", settings, gain=GAIN))
    opened = tiny.open_bundle(tmp_path / "bundle", source, [2])
    prompt, count = "the thé 漢字 the", 40
    generation = opened.session().generate(prompt, max_new_tokens=count)
    text = "".join(token.text for token in generation)
    for words, expected in ((["--json"], None), ([], text + "\n"), (["--stream"], text + "\n")):
        done = said(command, opened.files.path, prompt, "--raw", "--max-new-tokens", count, *words)
        assert done.returncode == 0, done.stderr
        if expected is None:
            found = json.loads(done.stdout)
            assert (found["prompt_ids"], found["text"]) == (generation.prompt_ids, text)
        else:
            assert done.stdout == expected
    answer = opened.session().chat([{"role": "user", "content": prompt}], max_new_tokens=count)
    text = "".join(token.text for token in answer)
    done = json.loads(said(command, opened.files.path, prompt, "--max-new-tokens", count, "--json").stdout)
    assert (done["prompt_ids"], done["token_ids"]) == (answer.prompt_ids, answer.ids)
    assert done["text"].removesuffix("\ufffd") == text  # a byte that is no character: Python waits
    assert answer.prompt_ids != generation.prompt_ids
    replace_file(opened.files.path, c.CHAT, None)  # as older builds have it
    refused = said(command, opened.files.path, prompt)
    assert (refused.returncode, "--raw" in refused.stderr) == (3, True)
    assert "in Jinja alone" in refused.stderr


# -- refusals ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(shelf: Any) -> Bundle:
    """A bundle whose files nobody may change."""
    found: Bundle = shelf.bundle(at=[1, 3], gain=GAIN)
    return found


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--prompt-ids", "1,128"], 2, "token id 128 is outside 0..127"),
        (["--prompt-ids", ""], 2, "the prompt is empty"),
        (["--prompt-ids", "1,x"], 2, "--prompt-ids has the value 1,x"),
        (["--prompt-ids", "1", "--max-new-tokens", "400"], 2, "do not fit the context of 256"),
        (["--prompt-ids", "1", "--max-new-tokens", "0"], 2, "is not positive"),
        (["--prompt-ids", "1", "--mode", "fast"], 2, "there is no mode fast"),
        (["--prompt-ids", "1", "--mode", "confident"], 2, "no calibration of these exits"),
        (["--prompt-ids", "1", "--pending-cap", "9"], 2, "pending cap 9 is not from 1 to 8"),
        (["--prompt-ids", "1,2,3", "--budget", "5"], 2, "the prompt alone costs 12 layer-rows"),
        (["--prompt-ids", "1", "--top-p", "1.5"], 2, "top_p"),
        (["--prompt-ids", "1", "--threshold", "1=0.5"], 2, "mode full asks none"),
        (["--prompt-ids", "1", "--mode", "exact", "--threshold", "2=0.5"], 2, "there is no exit at layer 2"),
        (["--prompt-ids", "1", "--mode", "exact", "--threshold", "1:margin=0.5"], 2, "none of the exit's gates"),
        (["--prompt-ids", "1", "--fast"], 2, "there is no option --fast"),
        (["--prompt-ids", "1", "--onnxruntime", "/nowhere/libonnxruntime.so.1"], 3, "ONNX Runtime cannot be loaded"),
        ([], 2, "give either a PROMPT or --prompt-ids"),
    ],
    ids=str,
)
def test_what_cannot_be_served_says_why(
    plain: Bundle, command: Path, words: list[str], status: int, message: str
) -> None:
    done = said(command, plain.files.path, *words)
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a document and give it the digest of what it then says."""
    document = json.loads(path.read_text())
    change(document)
    document["digest"] = document_digest(document)
    path.write_bytes(document_layout(document))


def flipped(path: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def of_manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda root: rewritten(root / c.MANIFEST, change)


def of_policy(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda root: rewritten(root / c.POLICY, change)


WEIGHTS = "segments/segment_0.weights"
DAMAGES: Mapping[str, Callable[[Path], Any]] = {
    "no-manifest": lambda root: (root / c.MANIFEST).unlink(),
    "no-policy": lambda root: (root / c.POLICY).unlink(),
    "no-graph": lambda root: (root / "segments/head.onnx").unlink(),
    "bit-of-weights": lambda root: flipped(root / WEIGHTS),
    "bit-of-a-graph": lambda root: flipped(root / "segments/segment_1.onnx"),
    "bit-of-the-manifest": lambda root: flipped(root / c.MANIFEST),
    "cut-off": lambda root: os.truncate(root / WEIGHTS, 100),
    "another-file": lambda root: (root / "segments/more.onnx").write_bytes(b""),
    "a-link": lambda root: (root / "segments/link.onnx").symlink_to("head.onnx"),
    "weights-by-a-link": lambda root: (
        shutil.move(root / WEIGHTS, root.parent) and (root / WEIGHTS).symlink_to("../../segment_0.weights")
    ),
    "a-pipe": lambda root: os.mkfifo(root / "segments/pipe"),
    "an-edited-number": lambda root: (root / c.MANIFEST).write_text(
        (root / c.MANIFEST).read_text().replace('"pending_cap": 8', '"pending_cap": 7')
    ),
    "a-member-twice": lambda root: (root / c.MANIFEST).write_text(
        (root / c.MANIFEST).read_text().replace('"slots": 1,', '"slots": 1,"slots": 1,')
    ),
    "deep": lambda root: (root / c.MANIFEST).write_text("[" * 100_000),
    "not-json": lambda root: (root / c.MANIFEST).write_text("{"),
    "newer": of_manifest(lambda d: d.update(version=2)),
    "another-format": of_manifest(lambda d: d.update(format="bundle")),
    "unknown-member": of_manifest(lambda d: d.update(more=1)),
    "huge": of_manifest(lambda d: d["model"].update(hidden=1 << 30)),
    "wrong-width": of_manifest(lambda d: d["model"].update(hidden=64)),
    "wrong-heads": of_manifest(lambda d: d["model"].update(kv_heads=4)),
    "a-path-out": of_manifest(lambda d: d["files"].update({"../outside": {"bytes": 0, "sha256": "0" * 64}})),
    "a-graph-outside": of_manifest(lambda d: d["graphs"]["head"].update(path="/etc/passwd")),
    "another-interface": of_manifest(lambda d: d["graphs"]["head"]["inputs"].reverse()),
    "no-slack": of_manifest(lambda d: d.update(slack=4)),
    "an-exit-elsewhere": of_manifest(lambda d: d["exits"][0].update(layer=2)),
    "no-schedule": of_manifest(lambda d: d.update(schedule=[])),
    "a-missing-segment": of_manifest(lambda d: d["schedule"][0].update(segment=7)),
    "another-core": of_policy(lambda d: d.update(core="0" * 64)),
    "uncalibrated": of_policy(lambda d: d["exits"][0].update(confident={"max_prob": 0.5})),
    "out-of-range": of_policy(lambda d: d["exits"][0].update(draft={"max_prob": 1.5})),
    "another-gate": of_policy(lambda d: d["exits"][0].update(draft={"margin": 0.5})),
    "weights-of-no-gate": of_policy(
        lambda d: d["exits"][0].update(gate={"units": 1, "w1": "", "b1": "", "w2": "", "b2": ""})
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bundle_is_refused_by_both(plain: Bundle, command: Path, tmp_path: Path, damage: str) -> None:
    root = shutil.copytree(plain.files.path, tmp_path / "bundle")
    DAMAGES[damage](root)
    with pytest.raises(EECompileError) as refused:
        Bundle.open(root, integrity="hash")
    done = said(command, root, "--prompt-ids", 1)
    assert (done.returncode, done.stdout) == (refused.value.exit_status, ""), done.stderr
    assert done.returncode == 4


# -- the real model ---------------------------------------------------------------------------------------------

DEMO = Path(__file__).parents[2] / "build" / "demo" / "bundle"


@pytest.mark.real
@pytest.mark.skipif(not (DEMO / c.MANIFEST).exists(), reason=f"no {DEMO}: run `make demo`")
def test_smollm2s_tokens_are_the_python_runtimes(command: Path) -> None:
    opened, prompt = Bundle.open(DEMO, integrity="size"), [1, 504, 3575, 282, 4649, 314]
    drafts = {22: {"learned": 0.2, "max_prob": 0.1}, 26: {"learned": 0.2, "max_prob": 0.1}}
    both(command, opened, prompt, 24, "full", Sampling(), {})
    found = both(command, opened, prompt, 40, "exact", Sampling(), drafts)
    assert found["stats"]["drafted"] > found["stats"]["rejected"] > 0
    both(command, opened, prompt, 24, "exact", Sampling(temperature=0.8, top_p=0.9, seed=3), drafts)
