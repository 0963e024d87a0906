"""Peers: the protocol with a scripted peer, every way to fail, and the real ones where they are installed."""

import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny

from eecompile.bench import bench as bench_module
from eecompile.bench.bench import run_bench
from eecompile.bench.peers import PEERS, PeerSetup, genai
from eecompile.bench.peers.base import missing, need_checkpoint
from eecompile.bench.peers.process import PeerProcess
from eecompile.bench.peers.worker import serve
from eecompile.bench.runs import PeerFailed
from eecompile.errors import EECompileError, MissingBackend, UsageError

FAKE = '''
import os, sys
import eecompile.bench.peers.worker as worker

class Fake:
    """Counts up from the last token of the prompt."""

    def available(self):
        return None

    def prepare(self, setup):
        print("a library prints where it should not")
        os.write(1, b"and a C library too\\n")
        if setup.precision == "int8":
            print("no kernels for int8 here", file=sys.stderr)
            os._exit(3)
        return {"precision": setup.precision, "threads": setup.threads, "version": "fake 1", "note": ""}

    def generate(self, prompt, tokens):
        print("still chatty")
        if prompt[-1] == 13:
            raise RuntimeError("unlucky")
        return [prompt[-1] + 1 + i for i in range(tokens - (prompt[-1] == 40))], 0.5

worker.PEERS = {"fake": Fake}
worker.main()
'''


@pytest.fixture
def fake(tmp_path: Path) -> list[str]:
    """The command of a scripted peer's process."""
    path = tmp_path / "fake.py"
    path.write_text(FAKE)
    return [sys.executable, str(path), "fake"]


def setup(tmp_path: Path, **changes: Any) -> PeerSetup:
    fields = {"checkpoint": None, "gguf": None, "precision": "fp32", "threads": 2, "context": 64, "workdir": tmp_path}
    return PeerSetup(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_peer_answers_over_a_pipe_whatever_it_prints(fake: list[str], tmp_path: Path) -> None:
    with PeerProcess("fake", setup(tmp_path), fake) as peer:
        assert peer.facts == {"precision": "fp32", "threads": 2, "version": "fake 1", "note": ""}
        run = peer.run([5, 6], 3)
        assert (run.ids, run.seconds) == ([7, 8, 9], 0.5)
        assert peer.run([1], 2).ids == [2, 3]
        process = peer._process
    assert process.poll() is not None


def test_a_peer_that_dies_is_reported_with_its_last_words(fake: list[str], tmp_path: Path) -> None:
    with pytest.raises(PeerFailed, match="fake ended: no kernels for int8 here"):
        PeerProcess("fake", setup(tmp_path, precision="int8"), fake)


def test_a_peers_exception_is_a_reason(fake: list[str], tmp_path: Path) -> None:
    with PeerProcess("fake", setup(tmp_path), fake) as peer:
        with pytest.raises(PeerFailed, match="RuntimeError: unlucky"):
            peer.run([13], 2)
        with pytest.raises(PeerFailed, match="fake ended"):
            peer.run([1], 2)


def test_a_peer_that_stops_early_is_no_peer(fake: list[str], tmp_path: Path) -> None:
    with PeerProcess("fake", setup(tmp_path), fake) as peer, pytest.raises(PeerFailed, match="4 tokens instead of 5"):
        peer.run([40], 5)


def test_a_command_that_is_not_a_peer(tmp_path: Path) -> None:
    with pytest.raises(PeerFailed, match="it said nothing"):
        PeerProcess("none", setup(tmp_path), [sys.executable, "-c", "pass"])


def test_a_peer_that_hangs_is_ended(tmp_path: Path) -> None:
    with pytest.raises(PeerFailed, match="sleeper did not answer within"):
        PeerProcess("sleeper", setup(tmp_path), [sys.executable, "-c", "import time; time.sleep(60)"], patience=0.5)


class Scripted:
    """A peer inside this process."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault = fault

    def available(self) -> str | None:
        return None

    def prepare(self, setup: PeerSetup) -> Any:
        assert isinstance(setup.workdir, Path)
        assert setup.checkpoint == Path("there")
        return {"precision": "fp32", "threads": 1, "version": "1", "note": ""}

    def generate(self, prompt: Sequence[int], tokens: int) -> tuple[list[int], float]:
        if self.fault:
            raise self.fault
        return [0] * tokens, 1.5


def _talk(peer: Scripted) -> list[dict[str, Any]]:
    fields = {"checkpoint": "there", "gguf": None, "precision": "fp32", "threads": 1, "context": 9, "workdir": "w"}
    requests = io.StringIO(json.dumps(fields) + "\n" + json.dumps({"prompt": [1], "tokens": 2}) + "\n")
    answers = io.StringIO()
    serve(peer, requests, answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_serving() -> None:
    assert _talk(Scripted())[1] == {"ids": [0, 0], "seconds": 1.5}
    assert _talk(Scripted(UsageError("what", mend="mend")))[1] == {"error": "what"}
    assert _talk(Scripted(ValueError("odd")))[1] == {"error": "ValueError: odd"}


def test_the_worker_of_an_unusable_setup_says_what_is_missing(tmp_path: Path) -> None:
    """The real worker, as a bench starts it, without a checkpoint: the reason reaches the bench."""
    with pytest.raises(PeerFailed, match="--checkpoint DIR"):
        PeerProcess("transformers", setup(tmp_path))
    with pytest.raises(PeerFailed, match="--gguf FILE"):
        PeerProcess("llama.cpp", setup(tmp_path))


def test_what_is_missing_is_named_with_the_way_to_install_it() -> None:
    assert missing(["json", "no_such_package"], "it") == "no_such_package is not installed: pip install it"
    assert missing(["json"], "it") is None
    for peer in PEERS.values():
        assert peer().available() is None or "pip install" in str(peer().available())


def test_registry_and_peers_import_no_peer() -> None:
    """Listing peers must not load them: torch alone takes seconds."""
    code = (
        "import sys; from eecompile.bench.bench import run_bench; from eecompile.bench.peers import PEERS;"
        "[p().available() for p in PEERS.values()];"
        "sys.exit(any(n in sys.modules for n in ('torch', 'transformers', 'onnxruntime_genai', 'llama_cpp')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_checkpoint_has_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none at"):
        need_checkpoint(setup(tmp_path, checkpoint=tmp_path), "x")
    with pytest.raises(UsageError, match="Hugging Face form: --checkpoint"):
        need_checkpoint(setup(tmp_path), "x")
    (tmp_path / "config.json").write_text("{}")
    assert need_checkpoint(setup(tmp_path, checkpoint=tmp_path), "x") == tmp_path


def test_a_failing_conversion_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny.checkpoint(tmp_path / "checkpoint")
    monkeypatch.setattr(genai, "missing", lambda packages, install: None)

    def fails(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert options["env"]["HF_HUB_OFFLINE"] == "1"
        assert {"block_size=32", "accuracy_level=4"} <= set(command)
        (Path(command[command.index("-o") + 1]) / "half.onnx").write_text("")
        return subprocess.CompletedProcess(command, 1, "", "first\nlast words\n")

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(EECompileError, match="last words"):
        genai.convert(source, "int4", tmp_path / "work")
    assert not list((tmp_path / "work").iterdir())


def test_a_conversion_is_done_once_for_each_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, made = tiny.checkpoint(tmp_path / "checkpoint"), []
    monkeypatch.setattr(genai, "missing", lambda packages, install: None)

    def works(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        made.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", works)
    first = genai.convert(source, "fp32", tmp_path / "work")
    assert genai.convert(source, "fp32", tmp_path / "work") == first
    assert len(made) == 1
    assert genai.convert(source, "int4", tmp_path / "work") != first
    tiny.checkpoint(source, seed=1, settings=tiny.config(tie_word_embeddings=True))
    assert genai.convert(source, "fp32", tmp_path / "work") != first
    assert len(made) == 3


def test_converting_needs_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genai, "missing", lambda packages, install: "torch is not installed: pip install it")
    with pytest.raises(MissingBackend, match="torch is not installed"):
        genai.convert(tiny.checkpoint(tmp_path / "checkpoint"), "fp32", tmp_path / "work")


@pytest.mark.torch
def test_transformers_gives_full_modes_tokens(shelf: Any) -> None:
    """The real peer in its real process, next to our modes."""
    if PEERS["transformers"]().available():
        pytest.skip(str(PEERS["transformers"]().available()))
    bundle, source = shelf.bundle(at=(1, 2)), shelf.checkpoint()
    prompts = [[5, 6, 7], [9, 100, 42, 42, 3]]
    found = run_bench(bundle, prompts, max_new_tokens=12, rounds=2, peers=["transformers"], checkpoint=source)
    peer = found.peers["transformers"]
    assert peer.tokens_equal
    assert peer.equal_prompts == 2
    assert (peer.precision, peer.threads, len(peer.round_seconds)) == ("fp32", bundle.threads, 2)
    assert peer.speed_ratio == pytest.approx(found.modes["full"].tokens_per_second / peer.tokens_per_second)
    assert "torch" in peer.version


@pytest.mark.torch
def test_genai_gives_full_modes_tokens(tmp_path: Path) -> None:
    """The real peer on a tiny checkpoint with a tokenizer, which its builder insists on; end tokens do not stop it."""
    absent = missing(["onnxruntime_genai", "torch", "transformers", "onnx_ir"], "onnxruntime-genai")
    if absent:
        pytest.skip(absent)
    plain = tiny.open_bundle(tmp_path / "plain", tiny.checkpoint(tmp_path / "no-end", tiny.config(head_dim=16)))
    prompts = [[5, 6, 7], [9, 100, 42, 42, 3]]
    end = tiny.tokens(plain, prompts[0], 4)[2]  # a token that the model emits in the middle
    settings = tiny.config(head_dim=16, eos_token_id=[end], pad_token_id=0)
    source = tiny.checkpoint(tmp_path / "checkpoint", settings)
    _write_tokenizer(source)
    bundle = tiny.open_bundle(tmp_path / "bundle", source)
    found = run_bench(
        bundle, prompts, max_new_tokens=12, rounds=1, peers=["genai"], checkpoint=source, workdir=tmp_path / "work"
    )
    assert not found.skipped
    assert found.peers["genai"].tokens_equal


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({f"t{i}": i for i in range(tiny.VOCAB)}, unk_token="t0")).save(
        str(folder / "tokenizer.json")
    )
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "t0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))


def test_every_peer_of_a_bench_is_closed_when_one_fails(
    shelf: Any, fake: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that fails in a later round is dropped with its reason; the others and our modes are reported."""
    opened: list[PeerProcess] = []

    def start(name: str, setup: PeerSetup) -> PeerProcess:
        opened.append(PeerProcess(name, setup, fake))
        return opened[-1]

    monkeypatch.setattr(bench_module, "PEERS", {"good": Scripted, "bad": Scripted})
    monkeypatch.setattr(bench_module, "PeerProcess", start)
    run_bad = PeerProcess.run

    def run(self: PeerProcess, prompt: list[int], tokens: int) -> Any:
        return run_bad(self, [13] if self.name == "bad" and prompt[0] == 8 else prompt, tokens)

    monkeypatch.setattr(PeerProcess, "run", run)
    found = run_bench(shelf.bundle(), [[7], [8]], max_new_tokens=3, rounds=2, peers=["good", "bad"])
    assert found.skipped == {"bad": "RuntimeError: unlucky"}
    assert set(found.peers) == {"good"}
    assert not found.peers["good"].tokens_equal
    assert all(peer._process.poll() is not None for peer in opened)


def test_find_spec_is_what_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reasons = {name: peer().available() for name, peer in PEERS.items()}
    assert reasons["genai"] == "onnxruntime_genai is not installed: pip install onnxruntime-genai"
    assert reasons["llama.cpp"] == "llama_cpp is not installed: pip install llama-cpp-python"
    assert "eecompile[verify]" in str(reasons["transformers"])
