"""`build`: the same bytes every time, little memory, and the old bundle or the new one whatever happens."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_t5

from eecompile.bundle.digest import gates_digest
from eecompile.errors import EECompileError, Uncalibrated, UsageError
from eecompile.pipeline import BuildOptions, build, plan, stage_count
from eecompile.runtime import Bundle
from eecompile.runtime.trace import Tracer
from eecompile.student.exits import ExitSpec, load_exits, save_exits
from eecompile.student.student import Student, open_student
from eecompile.target import load_target

CPU = load_target("cpu")
STAGES = ["embed", "segment 0", "segment 1", "segment 2", "exit 0", "exit 1", "head", "reference", "bundle"]
MIB = 1 << 20


def files(root: Path) -> dict[str, bytes]:
    """Every file under `root` by name."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a tokenizer, a learned gate, an adapter and a plain exit."""
    path = tmp_path_factory.mktemp("source") / "checkpoint"
    tiny.add_tokenizer(tiny.checkpoint(path, tiny.config(vocab_size=tiny.TOKENIZER_IDS)))
    gated = ExitSpec(layer=1, adapter="affine", gates=["learned", "max_prob"], gate_units=3)
    return tiny.add_exits(path, [gated, ExitSpec(layer=3, gates=["margin"], draft={"margin": 0.5})])


@pytest.fixture
def student(source: Path) -> Student:
    return open_student(source)


# -- what comes out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", tiny.PRECISIONS)
def test_two_builds_are_the_same_bytes(tmp_path: Path, student: Student, precision: str) -> None:
    for name in ("one/bundle", "two/elsewhere/other-name"):
        build(student, CPU, tmp_path / name, BuildOptions(precision=precision))
    one, two = files(tmp_path / "one/bundle"), files(tmp_path / "two/elsewhere/other-name")
    assert one == two
    assert json.loads(one["manifest.json"])["precision"] == precision
    assert {n.split("/")[0] for n in one} == {
        "manifest.json", "overlays", "reference", "reference.onnx", "segments", "tokenizer",
    }  # fmt: skip


def test_an_encoder_decoder_is_built_the_same_every_time(tmp_path: Path) -> None:
    source = open_student(tiny.checkpoint(tmp_path / "checkpoint", tiny_t5.newer()), [1, 3])
    said: list[str] = []
    for name in ("one", "two"):
        build(source, CPU, tmp_path / name, BuildOptions(precision="int4"), progress=said.append)
    assert said[: len(said) // 2] == [STAGES[0], "encoder", *STAGES[1:]]
    assert stage_count(source) == len(STAGES) + 1
    one = files(tmp_path / "one")
    assert one == files(tmp_path / "two")
    assert {"segments/encoder.onnx", "segments/encoder.weights", "reference/source_ids.npy"} <= set(one)
    manifest = Bundle.open(tmp_path / "one").manifest
    assert manifest.source is not None
    assert (manifest.source.context, manifest.source.start, manifest.slots) == (manifest.model.context, 0, 1)


def test_another_process_builds_the_same_bytes(tmp_path: Path, source: Path) -> None:
    """Whatever the hash seed, and whatever the checkpoint's own directory is called around it."""
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import tiny;"
        "tiny.bundle_at(Path(sys.argv[3]), Path(sys.argv[2]))"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", program, str(Path(__file__).parent), str(source), str(tmp_path / seed)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
        )
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_the_manifest_says_what_was_built(tmp_path: Path, student: Student) -> None:
    manifest = build(student, CPU, tmp_path / "bundle", BuildOptions("int8", 100, 5, minimum_rows=2))
    opened = Bundle.open(tmp_path / "bundle")
    assert opened.manifest == manifest
    assert (manifest.precision, manifest.model.context, manifest.pending_cap) == ("int8", 100, 5)
    assert (manifest.target, manifest.minimum_rows, manifest.tokenizer) == ("cpu", 2, True)
    assert [(e.layer, e.adapter, e.gates, e.gate_units) for e in manifest.exits] == [
        (1, "affine", ["learned", "max_prob"], 3), (3, "norm", ["margin"], 0),
    ]  # fmt: skip
    assert manifest.model.parameters == sum(int(np.prod(shape)) for shape in student.spec.shapes().values())
    assert manifest.provenance["checkpoint"] == "checkpoint"
    policy = opened.files.policy
    assert [(e.confident, e.draft, e.gate is not None) for e in policy.exits] == [
        (None, None, True), (None, {"margin": 0.5}, False),
    ]  # fmt: skip
    assert opened.text is not None
    assert opened.text.chat_template


@pytest.mark.parametrize("context", [None, 7])
def test_the_recorded_reference_is_what_the_bundle_computes(
    tmp_path: Path, student: Student, context: int | None
) -> None:
    build(student, CPU, tmp_path / "bundle", BuildOptions(context=context))
    recorded = {p.stem: np.load(p, allow_pickle=False) for p in (tmp_path / "bundle" / "reference").glob("*.npy")}
    assert set(recorded) == {"token_ids", "finished", "logits", "hidden_1", "hidden_3"}
    assert len(recorded["token_ids"]) == min(24, context or 24)
    trace = Tracer(Bundle.open(tmp_path / "bundle"), boundaries=True).trace(recorded["token_ids"].tolist())
    assert trace.boundaries is not None
    for name, rows in zip(("hidden_1", "hidden_3", "finished"), trace.boundaries, strict=True):
        np.testing.assert_allclose(rows, recorded[name], atol=1e-4 * np.abs(rows).max())
    np.testing.assert_array_equal(recorded["logits"].argmax(axis=1), trace.final.token[-4:])


def test_progress_names_every_stage(tmp_path: Path, student: Student) -> None:
    said: list[str] = []
    build(student, CPU, tmp_path / "bundle", BuildOptions(), progress=said.append)
    assert said == STAGES
    assert stage_count(student) == len(STAGES)


def calibrated(folder: Path, **changes: Any) -> Path:
    """A student whose one exit was calibrated to max_prob 0.2, for the build that `changes` describes."""
    tiny.add_exits(tiny.checkpoint(folder, gain=0.35), [ExitSpec(layer=2, gates=["max_prob"])])
    schema = load_exits(folder).schema
    probe = tiny.open_bundle(folder.with_name("probe"), folder)
    point = {"level": 1.0, "thresholds": [{"max_prob": 0.2}], "risk": 0.0, "p_value": 0.0, "exit_rate": 0.5}
    found = {
        "precision": "fp32", "kv": "catch_up", "pending_cap": 8, "method": "learn-then-test", "loss": "disagreement",
        "risk": 0.02, "error": 0.05, "documents": 9, "tokens": 99, "data": "0" * 64, "chosen": 0,
        "gates": gates_digest(probe.manifest.exits, probe.files.policy.exits),
        "path": [{**point, "mean_depth": 2.0}], **changes,
    }  # fmt: skip
    save_exits(folder, type(schema).model_validate({**schema.model_dump(), "calibrations": [found]}), {})
    return folder


def test_a_students_calibration_comes_along(tmp_path: Path) -> None:
    opened = tiny.open_bundle(tmp_path / "bundle", calibrated(tmp_path / "student"))
    assert len(opened.files.calibrations) == 1
    assert opened.files.policy.exits[0].confident == {"max_prob": 0.2}
    depths = {t.exit_layer for t in opened.session(mode="confident").generate([1, 2], max_new_tokens=40)}
    assert depths == {2, 4}


@pytest.mark.parametrize("changes", [{"precision": "int8"}, {"pending_cap": 4}, {"gates": "0" * 64}, {"chosen": None}])
def test_a_calibration_for_another_build_stays_behind(tmp_path: Path, changes: dict[str, Any]) -> None:
    opened = tiny.open_bundle(tmp_path / "bundle", calibrated(tmp_path / "student", **changes))
    assert opened.files.policy.exits[0].confident is None
    with pytest.raises(Uncalibrated):
        opened.session(mode="confident")


# -- what cannot be built ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, r"target cpu has no fp8(.|\n)*fp32, fp16, int8, int4"),
        ({"context": 0}, "context 0 is not from 1 to 256"),
        ({"context": -1}, "context -1"),
        ({"context": 257}, "context 257 is not from 1 to 256"),
        ({"pending_cap": 0}, "pending cap 0 is not from 1 to 8"),
        ({"pending_cap": 9}, "pending cap 9"),
        ({"minimum_rows": 0}, "minimum rows 0 is not from 1 to 16"),
        ({"minimum_rows": 17}, "minimum rows 17"),
    ],
)
def test_options_out_of_range(tmp_path: Path, student: Student, options: dict[str, Any], message: str) -> None:
    for refused in (plan, lambda *args: build(*args[:2], tmp_path / "bundle", args[2])):
        with pytest.raises(UsageError, match=message):
            refused(student, CPU, BuildOptions(**options))
    assert not (tmp_path / "bundle").exists()


def test_a_plan_writes_nothing(student: Student) -> None:
    assert plan(student, CPU, BuildOptions()) == {
        "precision": "fp32", "cache": "fp32", "kv": ["catch_up"], "slots": 1,
        "context": 256, "pending_cap": 8, "minimum_rows": 1, "exits": [1, 3],
    }  # fmt: skip


# -- what happens on the way ------------------------------------------------------------------------------------


def neighbours(out: Path) -> list[str]:
    """What lies beside a bundle, temporary directories included."""
    return sorted(path.name for path in out.parent.iterdir())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("old", [True, False])
def test_an_interrupt_leaves_what_there_was(tmp_path: Path, student: Student, stage: str, old: bool) -> None:
    out = tmp_path / "bundles" / "bundle"
    out.parent.mkdir()
    if old:
        tiny.bundle_at(out, student.path, [2])
    before = files(out)

    def interrupt(said: str) -> None:
        if said == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(student, CPU, out, BuildOptions(precision="int8"), progress=interrupt)
    assert files(out) == before
    assert neighbours(out) == (["bundle"] if old else [])


@pytest.fixture
def killed_build(tmp_path: Path, source: Path) -> Path:
    """Where a build over an older bundle was killed in its second segment."""
    out = tmp_path / "bundles" / "bundle"
    tiny.bundle_at(out, source, [2])
    program = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import tiny\n"
        "def wait(stage):\n"
        "    print(stage, flush=True)\n"
        "    if stage == 'segment 1': time.sleep(600)\n"
        "tiny.build(tiny.open_student(Path(sys.argv[2])), tiny.load_target('cpu'), Path(sys.argv[3]), "
        "tiny.BuildOptions(), progress=wait)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(Path(__file__).parent), str(source), str(out)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "segment 1\n" in iter(process.stdout.readline, "")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return out


def test_a_killed_build_leaves_the_old_bundle(tmp_path: Path, source: Path, killed_build: Path) -> None:
    tiny.bundle_at(tmp_path / "expected", source, [2])
    assert files(killed_build) == files(tmp_path / "expected")
    Bundle.open(killed_build)
    assert len(neighbours(killed_build)) == 2  # the half of a bundle, under another name


def test_the_next_build_sweeps_up(killed_build: Path, student: Student) -> None:
    build(student, CPU, killed_build, BuildOptions())
    assert neighbours(killed_build) == ["bundle"]
    assert len(Bundle.open(killed_build).manifest.exits) == 2


def test_an_output_below_a_file(tmp_path: Path, student: Student) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(EECompileError) as caught:
        build(student, CPU, tmp_path / "file" / "bundle", BuildOptions())
    assert "file" in caught.value.where
    assert files(tmp_path) == {"file": b"mine"}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_an_output_where_nothing_can_be_made(student: Student) -> None:
    with pytest.raises(EECompileError) as caught:
        build(student, CPU, Path("/proc/eecompile/bundle"), BuildOptions())
    assert "/proc/eecompile" in caught.value.where
    assert caught.value.mend


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_that_may_not_be_written(tmp_path: Path, student: Student) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(EECompileError, match="closed"):
        build(student, CPU, tmp_path / "closed" / "bundle", BuildOptions())


@pytest.mark.parametrize("name", ["file", "folder"])
def test_what_is_no_bundle_is_not_replaced(tmp_path: Path, student: Student, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    before = files(tmp_path)
    said: list[str] = []
    with pytest.raises(UsageError, match="output"):
        build(student, CPU, tmp_path / name, BuildOptions(), progress=said.append)
    assert files(tmp_path) == before
    assert said == []  # refused before the work, not after it


PEAK = """
import re, sys
from pathlib import Path
from eecompile.pipeline import BuildOptions, build
from eecompile.student.student import open_student
from eecompile.target import load_target
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
start = peak()
build(open_student(Path(sys.argv[1]), [2, 4, 6]), load_target("cpu"), Path(sys.argv[2]), BuildOptions(sys.argv[3]))
print(start, peak())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_build_takes_little_more_memory_than_its_largest_weight(tmp_path: Path, precision: str) -> None:
    """150 MB of weights in four segments of 33 MB."""
    settings = tiny.config(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8,
        head_dim=64, vocab_size=4096,
    )  # fmt: skip
    source = tiny.checkpoint(tmp_path / "checkpoint", settings)
    assert (source / "model.safetensors").stat().st_size > 150_000_000
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(source), str(tmp_path / "bundle"), precision],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    start, peak = map(int, done.stdout.split())
    segment = max(p.stat().st_size for p in (tmp_path / "bundle/segments").glob("segment_*.weights"))
    assert peak <= 1.5 * segment + 300 * MIB
    assert peak - start <= 1.5 * 33 * MIB + 50 * MIB  # loading the checkpoint would add its 150
