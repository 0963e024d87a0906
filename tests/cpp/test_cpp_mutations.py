"""Bundles and tokenizers changed at random, under the address and undefined behaviour sanitizers: read or refused."""

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import stressed
import tiny
import tokenizer_made as made

from eecompile import contract as c
from eecompile.student.exits import ExitSpec

INTEGRITY = 5  # eecompile::Code
WORKERS = 2
MIB = 1 << 20


@pytest.fixture(scope="session")
def stress() -> Path:
    """The programs with the sanitizers on."""
    return stressed.built("address")


@pytest.fixture(scope="module")
def root(shelf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated bundle with learned gates."""
    gates: list[Any] = ["learned", "max_prob"]
    exits = [ExitSpec(layer=n, adapter="affine", gates=gates, gate_units=4) for n in (1, 3)]
    path = tmp_path_factory.mktemp("mutations") / "bundle"
    tiny.bundle_at(path, shelf.checkpoint(exits=exits, gain=0.35))
    return tiny.calibrate(path, [{"learned": 0.3, "max_prob": 0.05}] * 2).files.path


def mutated(stress: Path, root: Path, folder: Path, count: int, engines: int) -> tuple[Counter[str], list[Any]]:
    """How `count` changed bundles ended; the first `engines` that the reader takes are run."""

    def one(worker: int) -> dict[str, Any]:
        copy, share = shutil.copytree(root, folder / f"bundle-{worker}"), count // WORKERS
        options = {"engines": engines // WORKERS, "onnxruntime": stressed.ONNXRUNTIME}
        return stressed.ask(stress, "mutate", copy, **{"from": worker * share, "count": share, **options})

    with ThreadPoolExecutor(WORKERS) as pool:
        reports = list(pool.map(one, range(WORKERS)))
    return sum((Counter(report["ends"]) for report in reports), Counter()), reports


def test_twenty_thousand_bundles_are_read_or_refused(stress: Path, root: Path, tmp_path: Path) -> None:
    """No crash, no second of the processor's time, no heap that the documents' size does not warrant."""
    ends, reports = mutated(stress, root, tmp_path, 20_000, 40)
    assert ends.total() == 20_000
    assert min(ends["ok"], ends["integrity"]) > 500
    for report in reports:
        assert report["ran"] == 20
        assert report["reasons"] > 100
        assert report["slowest_seconds"] < 1
        assert report["peak_per_byte"] < 40


@pytest.mark.slow
def test_many_more_bundles_are_run(stress: Path, root: Path, tmp_path: Path) -> None:
    ends, _ = mutated(stress, root, tmp_path, 100_000, 4_000)
    assert ends.total() == 100_000


def test_changed_tokenizers_are_read_or_refused(stress: Path, tmp_path: Path) -> None:
    files = []
    for name, tokenizer in (("bpe", made.llama2()), ("pieces", made.word_piece()), ("unigram", made.unigram(True))):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(made.with_added(tokenizer).to_str(), encoding="utf-8")
    report = stressed.ask(stress, "mutate-tokenizers", *files, count=1500)
    assert sum(report["ends"].values()) == 1500
    assert min(report["ends"]["ok"], report["ends"]["integrity"], report["ends"]["unsupported"]) > 20
    assert report["slowest_seconds"] < 1


HOSTILE = {  # the manifest's limit is 16 MB
    "numbers": lambda size: b'{"format": [' + b"0," * (size // 2) + b"0]}",
    "lists": lambda size: b'{"format": [' + b"[]," * (size // 3) + b"0]}",
    "members": lambda size: b"{" + b",".join(b'"%d":0' % i for i in range(size // 10)) + b"}",
    "a text": lambda size: b'{"format": "' + b"x" * size + b'"}',
    "depth": lambda size: b'{"format": ' + b"[" * size,
    "keys with escapes": lambda size: b"{" + b",".join(b'"\\u0061%07x":0' % i for i in range(size // 24)) + b"}",
    "lists that are long": lambda size: b'{"format": [' + b"[100000000000000]," * (size // 18) + b"0]}",
    "digits": lambda size: b'{"format": ' + b"9" * size + b"}",
    "blanks": lambda size: b" " * size,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_document_of_megabytes_takes_at_most_twice_its_size(stress: Path, tmp_path: Path, kind: str) -> None:
    """And 1 MB, which small documents may take of a tree that has more than they."""
    data = HOSTILE[kind](12 * MIB)
    (tmp_path / c.MANIFEST).write_bytes(data)
    report = stressed.ask(stress, "read", tmp_path)
    assert report["code"] == INTEGRITY, report
    assert report["peak_bytes"] < 2 * len(data) + MIB + MIB // 16


@pytest.mark.slow
@pytest.mark.parametrize("mode", c.MODES)
def test_requests_run_under_the_sanitizers(stress: Path, root: Path, mode: str) -> None:
    for sampling in ([], ["--temperature", "0.8", "--top-k", "9", "--top-p", "0.9"]):
        words = [stress / "eecompile-run", "--onnxruntime", stressed.ONNXRUNTIME, root, "--mode", mode, "--json"]
        words += ["--prompt-ids", ",".join(["7"] * 140), "--max-new-tokens", "90", *sampling]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(json.loads(done.stdout)["token_ids"]) == 90


GREEDY = r"\p{L}*\p{L}*\p{L}*\p{L}*\p{L}*\d"
DOUBLED = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
COSTLY: Mapping[str, Mapping[str, Any]] = {
    "a pattern that goes back and forth": {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": GREEDY}, "behavior": "Isolated", "invert": False}
    },
    "a text that doubles": {"normalizer": {"type": "Sequence", "normalizers": [DOUBLED] * 60}},
    "a text that explodes": {"normalizer": {**DOUBLED, "content": "a" * 10_000_000}},
}


@pytest.mark.parametrize("kind", COSTLY)
def test_a_hostile_tokenizer_neither_hangs_nor_takes_all_memory(stress: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(made.microscope().to_str()) | COSTLY[kind]))
    report = stressed.ask(stress, "tokenize", path, text="a" * 1000)
    assert report["seconds"] < 5
    assert report["peak_bytes"] < 256 * MIB
    assert (report["ids"] == 1000) is ("pattern" in kind)
