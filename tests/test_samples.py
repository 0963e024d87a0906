"""The samples, run as they are written, on a tiny model in the place of the real one."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import tiny_encoder as te
from real_inputs import real_input

from eecompile.student.lora import merge_lora

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which a tiny encoder, and made-up mails, stand where `tools/inputs.py` puts the real ones."""
    root, chance = tmp_path_factory.mktemp("samples"), random.Random(0)
    settings = te.config("bert", "tokens", num_hidden_layers=6)
    te.add_tokenizer(te.checkpoint(root / "build/inputs/rampart", settings, gain=0.2))
    (root / "build/inputs/mails").mkdir(parents=True)
    for name, count in (("calibrate", 200), ("heldout", 20)):
        mails = [{"texts": [" ".join(chance.choices(te.WORDS[4:16], k=8)) for _ in range(2)]} for _ in range(count)]
        lines = "\n".join(map(json.dumps, mails)) + "\n"
        (root / f"build/inputs/mails/{name}.jsonl").write_text(lines)
    return root


def run(script: str, place: Path, *arguments: str) -> str:
    command, path = [sys.executable, str(ROOT / script), *arguments], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=place, env=path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-4000:])
    return done.stdout


def test_the_classifier_sample(place: Path) -> None:
    said = run("samples/02_classifier/demo.py", place)
    assert "after 6 layers" in said or "after 4 layers" in said
    assert len((place / "build/classifier/answers.jsonl").read_text().splitlines()) == 40
    assert (place / "build/classifier/bundle/report.html").exists()
    assert "after" in run("samples/02_classifier/classify.py", place, "build/classifier/bundle")


def test_the_curves_of_the_benchmarks(place: Path) -> None:
    options = ["--out", "curves", "--fit", "200", "--mails", "3", "--rounds", "1"]
    said = run("tools/rampart.py", place, *options)
    assert "| token 0.8 uncompacted | 32 |" in said
    assert "time without compaction / with it, batch 32" in said


def test_the_configs_of_the_training_sample_are_valid() -> None:
    pytest.importorskip("torch")
    from eecompile_training.config import load_config
    from eecompile_training.distill_config import DistillConfig
    from eecompile_training.exit_settings import ExitsConfig
    from eecompile_training.policy.settings import PolicyConfig
    from eecompile_training.recipes import RECIPES

    folder = ROOT / "samples/05_train"
    distilled = load_config(folder / "distill.yaml", DistillConfig, RECIPES)
    gated = load_config(folder / "exits.yaml", ExitsConfig)
    assert distilled.exits.at == gated.at
    assert (distilled.exits.head, distilled.exits.shortlist) == (gated.head, gated.shortlist)
    assert load_config(folder / "policy.yaml", PolicyConfig).steps > 0


def test_the_host_s_part_of_a_device_build(tmp_path: Path) -> None:
    """Build, verify, what is left to do; and the device's part, which says so where there is no GPU."""
    sizes = {"num_hidden_layers": 4, "vocab_size": 288}
    source = tiny.add_tokenizer(tiny.checkpoint(tmp_path / "student", tiny.config(**sizes), gain=0.2))
    said = run("samples/04_jetson/deploy.py", tmp_path, "--student", str(source))
    assert "eecompile verify" in said
    assert "sh device.sh" in said.split("Left to do")[1]
    plan = json.loads((tmp_path / "build/jetson/bundle/segments/device_plan.json").read_text())
    assert (plan["target"], plan["sm"]) == ("jetson-orin", [87])
    if any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/nvhost-gpu").exists():
        pytest.skip("this machine has a GPU, and may well be the device")
    (tmp_path / "eecompile").write_text(f'#!/bin/sh\nexec {sys.executable} -m eecompile "$@"\n')
    (tmp_path / "eecompile").chmod(0o755)
    there = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = ["sh", str(ROOT / "samples/04_jetson/device.sh"), "build/jetson/bundle"]
    done = subprocess.run(script, cwd=tmp_path, env=there, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 3, (done.stdout[-2000:], done.stderr[-4000:])
    assert "copy the bundle to the device" in done.stderr


@pytest.mark.real
def test_the_trained_parts_make_a_student_that_leaves_early(tmp_path: Path) -> None:
    """Merged into the real model they extract from mails, and the exit after 8 of 30 layers says so for most tokens."""
    pytest.importorskip("torch")
    model = real_input("smollm2")
    from eecompile_training.judge import judge

    parts = ROOT / "samples/05_train/student"
    merge_lora(model, parts, tmp_path / "student")
    found = judge(tmp_path / "student", {"mails": ROOT / "samples/05_train/mails.jsonl"}, tokens=40)["mails"]["exits"]
    assert found["last"]["perplexity"] < 1.3
    assert found["after 8"]["agreement"] >= 0.7
    assert sum(file.stat().st_size for file in parts.iterdir()) < 6e6
