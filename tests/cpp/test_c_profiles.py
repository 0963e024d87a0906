"""Profiles in the C++ runtime: passes are grouped by the first one as in Python, and broken ones are refused."""

import ctypes as ct
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from c_calls import INTEGRITY, ONNXRUNTIME, OpenOptions, load, open_again, said, sized
from test_c_batch import DRAFTS, GAIN, InC, plan, run_both

from eecompile import contract as c
from eecompile.bundle.digest import document_digest, document_layout
from eecompile.bundle.read import read_bundle
from eecompile.bundle.write import write_overlay
from eecompile.errors import IntegrityError
from eecompile.runtime import Bundle
from eecompile.runtime.plan import PASS_ROWS, pass_rows

PROFILE = "overlays/profile-here.json"
TIMES = {  # seconds of a segment's pass by rows, and how many rows cost as much as a pass then
    "dear": ({1: 1.0, 9: 0.9, 128: 100.0}, 64.0),
    "free": ({1: 1.0, 9: 9.0, 128: 100.0}, 1.0),
    "between": ({1: 0.7, 9: 1.7, 128: 31.0}, 4.6),
    "two-sizes": ({1: 0.3, 17: 1.1}, 5.0),
    "one-size": ({1: 0.3}, PASS_ROWS),
    "no-single-row": ({2: 0.3, 9: 0.4}, PASS_ROWS),
}


@pytest.fixture(scope="module")
def library_c(library: Path) -> Any:
    return load(library)


@pytest.fixture(scope="module")
def plain(shelf: Any) -> Bundle:
    found: Bundle = shelf.bundle(at=[1, 3], gain=GAIN, slots=4)
    return found


def fields(times: dict[int, float]) -> dict[str, Any]:
    """A profile in which two segments and the head were measured."""
    passes = [
        {"graph": graph, "rows": rows, "length": 64, "seconds": share * seconds}
        for graph, share in (("segment_0", 0.3), ("segment_1", 0.7), ("head", 9.0))
        for rows, seconds in times.items()
    ]
    return {"device": "paper", "threads": 1, "passes": passes}


def test_passes_are_grouped_by_the_first_profile(library_c: Any, plain: Bundle, tmp_path: Path) -> None:
    """Tokens, depths and counts of passes of batches that requests join, step by step."""
    passes = {}
    steps = [[{**one, "cancel": None} for one in step] for step in plan(2, 4)]
    for name, (times, rows) in TIMES.items():
        root = shutil.copytree(plain.files.path, tmp_path / name)
        write_overlay(root, PROFILE, fields(times))
        write_overlay(root, "overlays/profile-later.json", fields({1: 1.0, 9: 3.0, 128: 50.0}))
        opened = Bundle.open(root, integrity="size")
        assert pass_rows(opened.files.profiles) == pytest.approx(rows)
        handle = open_again(library_c, opened)
        mine = InC(library_c).open(handle, 4, DRAFTS, mode=b"exact", pending_cap=5)
        own = opened.batch(slots=4, mode="exact", pending_cap=5, thresholds=DRAFTS)
        requests, _ = run_both(mine, own, steps)
        passes[name] = sum(request.stats.segment_passes for request in requests)
        mine.close()
        library_c.eecompile_close(handle)
    assert len(set(passes.values())) == 4, passes  # or the profiles would have changed nothing


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a-member-more": lambda d: d.update(surprise=1),
    "another-kind": lambda d: d.update(kind="calibration"),
    "no-device": lambda d: d.update(device=""),
    "no-threads": lambda d: d.pop("threads"),
    "threads": lambda d: d.update(threads=4097),
    "no-passes": lambda d: d.pop("passes"),
    "passes": lambda d: d.update(passes={}),
    "a-pass": lambda d: d.update(passes=[1]),
    "rows": lambda d: d["passes"][0].update(rows=0),
    "rows-of-a-fraction": lambda d: d["passes"][0].update(rows=1.5),
    "rows-of-truth": lambda d: d["passes"][0].update(rows=True),
    "length": lambda d: d["passes"][1].update(length=c.MAX_CONTEXT + 1),
    "seconds": lambda d: d["passes"][1].update(seconds=-0.1),
    "an-hour": lambda d: d["passes"][1].update(seconds=3601),
    "seconds-of-words": lambda d: d["passes"][1].update(seconds="1"),
    "no-graph": lambda d: d["passes"][2].update(graph=""),
    "a-long-graph": lambda d: d["passes"][2].update(graph="x" * 201),
    "a-pass-more": lambda d: d["passes"][2].update(other=0),
    "another-core": lambda d: d.update(core="0" * 64),
}


def test_broken_profiles_are_refused_by_both(library_c: Any, plain: Bundle, tmp_path: Path) -> None:
    root = shutil.copytree(plain.files.path, tmp_path / "bundle")
    write_overlay(root, PROFILE, fields(TIMES["free"][0]))
    whole = (root / PROFILE).read_bytes()
    options = sized(OpenOptions, sizes_only=1, threads=plain.threads, onnxruntime=ONNXRUNTIME)

    def code() -> int:
        handle = ct.c_void_p()
        done = library_c.eecompile_open(str(root).encode(), ct.byref(options), ct.byref(handle))
        library_c.eecompile_close(handle)
        return int(done)

    def refused(data: bytes) -> str:
        (root / PROFILE).write_bytes(data)
        with pytest.raises(IntegrityError):
            read_bundle(root, integrity="size")
        assert code() == INTEGRITY
        return str(said(library_c))

    assert code() == 0, said(library_c)
    for name, change in DAMAGES.items():
        document = json.loads(whole)
        change(document)
        document["digest"] = document_digest(document)
        message = refused(document_layout(document))
        assert PROFILE in message, name
        assert ("eecompile profile" in message) == (name == "another-core")
    assert "its own digest" in refused(whole.replace(b"paper", b"stone"))
    assert "not JSON" in refused(whole[:-3])
    (root / PROFILE).write_bytes(whole)
    assert code() == 0, said(library_c)
    assert tiny.tokens(Bundle.open(root, integrity="size"), [3, 1], 4) == tiny.tokens(plain, [3, 1], 4)


def test_a_profile_of_many_passes_is_read_once(library_c: Any, plain: Bundle, tmp_path: Path) -> None:
    """And not once for each of them, which took minutes."""
    root = shutil.copytree(plain.files.path, tmp_path / "bundle")
    handle, options = ct.c_void_p(), sized(OpenOptions, threads=plain.threads, onnxruntime=ONNXRUNTIME)
    one = {"graph": "segment_0", "rows": 1, "length": 0, "seconds": 0.1}
    write_overlay(root, PROFILE, fields({1: 1.0}) | {"passes": [one] * 100_000})
    began = time.process_time()
    done = library_c.eecompile_open(str(root).encode(), ct.byref(options), ct.byref(handle))
    assert done == 0, said(library_c)
    library_c.eecompile_close(handle)
    assert time.process_time() - began < 5
