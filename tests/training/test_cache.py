"""The cache of hidden states: what is read is what was written, interrupted writes are not taken for whole ones."""

import errno
import os
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eecompile_training import cache as module
from eecompile_training.cache import HiddenCache, cache_name, find_cache, writing_caches
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.errors import EECompileError, IntegrityError

FACTS: dict[str, Any] = {"model": "m", "data": "d", "layers": [1, 2]}


@pytest.fixture(scope="module", autouse=True)
def unsynced() -> Iterator[None]:
    """Waiting for the disk is slow where shards are a few bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: None)
        yield


def documents(lengths: list[int], seed: int = 0) -> list[tuple[Any, Any]]:
    """Rows [T, 3, 5] and two labels each."""
    rng = np.random.default_rng(seed)
    return [
        (rng.standard_normal((n, 3, 5)).astype(np.float32), rng.integers(-1, 99, (n, 2))) for n in lengths
    ]  # fmt: skip


def written(root: Path, found: list[tuple[Any, Any]], **how: Any) -> HiddenCache:
    with writing_caches(root, [FACTS], **how) as (writer,):
        for states, labels in found:
            writer.add(states, labels)
    cache = find_cache(root, FACTS)
    assert cache is not None
    return cache


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), shard=st.integers(1, 600))
def test_rows_come_back_whatever_the_shards(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], shard: int
) -> None:
    found = documents(lengths)
    cache = written(tmp_path_factory.mktemp("c"), found, dtype="float32", shard_bytes=shard)
    states, labels = (np.concatenate(parts) for parts in zip(*found, strict=True))
    assert (cache.rows, cache.index.documents) == (sum(lengths), len(lengths))
    order = np.random.default_rng(1).integers(0, cache.rows, 2 * cache.rows)
    got = cache.take(order)
    np.testing.assert_array_equal(got[0], states[order])
    np.testing.assert_array_equal(got[1], labels[order])
    for number, (own, marks) in enumerate(found):
        np.testing.assert_array_equal(cache.document(number)[0], own)
        np.testing.assert_array_equal(cache.document(number)[1], marks)
    parts = list(cache.chunks(4))
    np.testing.assert_array_equal(np.concatenate([s for s, _ in parts]), states)


def test_float16_rounds_and_clips(tmp_path: Path) -> None:
    states = np.array([[[1e6, -1e6, 1.0001, 0, 2]]], np.float32)
    got = written(tmp_path, [(states, np.zeros((1, 1), np.int64))]).take(np.array([0]))[0]
    np.testing.assert_array_equal(got[0, 0], np.array([65504, -65504, 1.0, 0, 2], np.float32))


def test_other_facts_are_another_cache(tmp_path: Path) -> None:
    written(tmp_path, documents([3]))
    assert find_cache(tmp_path, {**FACTS, "layers": [1]}) is None


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def stop() -> None:
        with writing_caches(tmp_path, [FACTS], shard_bytes=1) as (writer,):
            writer.add(*documents([3])[0])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = tmp_path / f".tmp-{gone.pid}-00000000"
    left.mkdir()
    alive = tmp_path / f".tmp-{os.getpid()}-00000000"
    alive.mkdir()
    written(tmp_path, documents([2]))
    assert not left.exists()
    assert alive.exists()


@pytest.mark.parametrize("what", ["states-00001.npy", "labels-00000.npy", "cache.json"])
def test_a_cache_that_lacks_a_file_is_written_anew(tmp_path: Path, what: str) -> None:
    cache = written(tmp_path, documents([3, 4]), shard_bytes=1)
    (cache.path / what).unlink()
    with pytest.raises(IntegrityError, match="broken"):
        HiddenCache.open(cache.path)
    assert find_cache(tmp_path, FACTS) is None
    assert not cache.path.exists()


def test_a_shard_that_is_cut_short_is_found(tmp_path: Path) -> None:
    cache = written(tmp_path, documents([3, 4]), shard_bytes=1)
    shard = cache.path / "states-00001.npy"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="shard 1 is missing or cut short"):
        HiddenCache.open(cache.path)


def test_a_full_disk_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.np.lib.format, "write_array", lambda *a, **k: full())
    with pytest.raises(EECompileError, match="no space left"), writing_caches(tmp_path, [FACTS]) as (writer,):
        writer.add(*documents([3])[0])
    assert list(tmp_path.iterdir()) == []


def test_memory_is_bounded_by_the_shard(tmp_path: Path) -> None:
    states, labels = np.zeros((64, 4, 128), np.float32), np.zeros((64, 2), np.int64)
    tracemalloc.start()
    with writing_caches(tmp_path, [FACTS], shard_bytes=1 << 20) as (writer,):
        for _ in range(400):  # 26 MB in float16
            writer.add(states, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    assert (tmp_path / cache_name(FACTS) / "states-00024.npy").exists()
