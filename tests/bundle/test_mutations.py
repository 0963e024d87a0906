"""Whatever is changed in a bundle, the reader refuses it with an IntegrityError and with nothing else."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tiny_bundle import accept_core

from eecompile.bundle.read import read_bundle
from eecompile.errors import IntegrityError

SEED, MUTATIONS = 20_240_601, 300


def mutate(rng: random.Random, data: bytes) -> bytes:
    """`data` with a bit or byte changed, bytes dropped, doubled or put in, or its end cut off."""
    at = rng.randrange(len(data))
    end = min(len(data), at + rng.choice([1, 1, 2, 16]))
    changes: list[Callable[[], bytes]] = [
        lambda: data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
        lambda: data[:at] + rng.randbytes(end - at) + data[end:],
        lambda: data[:at] + data[end:],
        lambda: data[:end] + data[at:],
        lambda: data[:at] + rng.choice([b" ", b"\n", b"0", b"\0", b'"', b"{"]) + data[at:],
        lambda: data[:at],
    ]
    return rng.choice(changes)()


def is_refused(bundle: Path, key: Path | None = None) -> bool:
    """Whether the reader raises an IntegrityError; any other exception fails the test."""
    try:
        read_bundle(bundle, key=key)
    except IntegrityError:
        return True
    return False


def files_of(bundle: Path) -> list[Path]:
    return sorted(p for p in bundle.rglob("*") if p.is_file())


def test_every_mutation_is_refused(signed: Path, keys: tuple[Path, Path]) -> None:
    rng = random.Random(SEED)
    for number in range(MUTATIONS):
        path = rng.choice(files_of(signed))
        before = path.read_bytes()
        after = mutate(rng, before)
        path.write_bytes(after)
        if after != before:
            assert is_refused(signed, key=keys[0]), f"mutation {number} of {path.name} was read"
        path.write_bytes(before)
    read_bundle(signed, key=keys[0])


def test_without_signatures_every_mutation_is_refused(bundle: Path) -> None:
    rng = random.Random(SEED + 1)
    for number in range(MUTATIONS):
        path = rng.choice(files_of(bundle))
        before = path.read_bytes()
        after = mutate(rng, before)
        path.write_bytes(after)
        if after != before:
            assert is_refused(bundle), f"mutation {number} of {path.name} was read"
        path.write_bytes(before)


def test_graphs_mutated_with_their_hashes_never_crash_the_reader(pristine: Path, tmp_path: Path) -> None:
    rng = random.Random(SEED + 2)
    bundle = Path(shutil.copytree(pristine, tmp_path / "bundle"))
    path = bundle / "segments" / "segment_0.onnx"
    before, read = path.read_bytes(), 0
    for _ in range(MUTATIONS):
        path.write_bytes(mutate(rng, before) or b"\0")
        accept_core(bundle)
        read += not is_refused(bundle)
    assert 0 < read < MUTATIONS


def test_files_removed_one_by_one(pristine: Path, tmp_path: Path) -> None:
    for path in files_of(pristine):
        bundle = Path(shutil.copytree(pristine, tmp_path / "bundle"))
        (bundle / path.relative_to(pristine)).unlink()
        if path.name.startswith("profile-"):
            read_bundle(bundle)  # a profile may be removed
        else:
            assert is_refused(bundle)
        shutil.rmtree(bundle)
