"""What the back end tensorrt refuses, and in which words; and what `auto` takes."""

import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from doubled import (
    add_engines,
    install,
    opened,
)
from trt_double import FakeTensorRT

from eecompile.errors import EECompileError, IntegrityError, MissingBackend, UsageError
from eecompile.plugins.library import find_library
from eecompile.runtime import Bundle, backends

honest_library = find_library


def test_a_pass_that_no_profile_holds_is_refused(built: dict[str, Path], trt: FakeTensorRT) -> None:
    gpu = opened(built)
    rows = gpu.manifest.prefill_rows + 1
    with pytest.raises(UsageError, match=rf"no optimisation profile .* token_ids \[1, {rows}\]"):
        gpu.graphs.embed.run({"token_ids": np.zeros((1, rows), np.int64)})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: np.zeros((1, 2), np.int64), "not in the memory"),
        (lambda m: m.rows((1, 2)), "is int64 and is bound to float32"),
        (lambda m: m.rows((1, 4), np.int64)[:, ::2], "not contiguous"),
        (lambda m: m.rows((1, 4), np.int64)[:, 2:], "multiple of 256"),
    ],
)
def test_buffers_that_are_none_are_a_bug(
    built: dict[str, Path], trt: FakeTensorRT, spoil: Callable[[Any], Any], message: str
) -> None:
    embed = opened(built).graphs.embed
    out = embed.memory.rows((1, 2, embed.info.outputs[0].shape[2]))
    with pytest.raises(ValueError, match=message):
        embed.bind({"token_ids": spoil(embed.memory), "hidden_out": out})


@pytest.mark.parametrize(
    ("version", "gpu", "message"),
    [
        ("10.16.3", {}, "another TensorRT: 10.16.2, and this machine's is 10.16.3"),
        ("10.16.2", {"major": 9, "minor": 0}, "another compute capability: 87, and this machine's is 90"),
    ],
)
def test_foreign_engines_are_refused_before_they_are_loaded(
    built: dict[str, Path], monkeypatch: pytest.MonkeyPatch, version: str, gpu: dict[str, int], message: str
) -> None:
    trt = install(monkeypatch, version=version)
    facts = trt.cuda.cudaGetDeviceProperties(0)[1]
    facts.__dict__.update(gpu)
    monkeypatch.setattr(type(trt.cuda), "cudaGetDeviceProperties", lambda self, device: (0, facts))
    with pytest.raises(IntegrityError, match=message):
        opened(built)
    assert trt.deserialised == []


def test_a_changed_engine_is_refused_before_it_is_loaded(
    built: dict[str, Path], trt: FakeTensorRT, tmp_path: Path
) -> None:
    bundle = add_engines(Path(shutil.copytree(built["plain"], tmp_path / "bundle")))
    path = next((bundle / "engines").rglob("segment_1.plan"))
    path.write_bytes(path.read_bytes().replace(b"onnx", b"ONNX", 1))
    with pytest.raises(IntegrityError, match="its SHA-256 is not the record's"):
        Bundle.open(bundle, backend="tensorrt")
    assert "device_segment_1.onnx" not in trt.deserialised


def test_auto_takes_the_engines_where_they_can_run(built: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert Bundle.open(built["engines"]).backend == "onnxruntime"  # nothing is installed
    trt = install(monkeypatch)
    assert Bundle.open(built["plain"]).backend == "onnxruntime"
    assert Bundle.open(built["engines"]).backend == "tensorrt"
    trt.cuda.gpus = 0
    assert Bundle.open(built["engines"]).backend == "onnxruntime"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m, t: m.setitem(sys.modules, "tensorrt", None), "needs the Python package tensorrt"),
        (lambda m, t: m.setitem(sys.modules, "cuda.bindings.runtime", None), "cuda-bindings"),
        (lambda m, t: setattr(t.cuda, "gpus", 0), "there is no GPU here"),
        (lambda m, t: setattr(t, "__version__", "10.2.0"), "older than 10.3"),
    ],
)
def test_what_is_missing_is_said(
    built: dict[str, Path], trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, spoil: Any, message: str
) -> None:
    spoil(monkeypatch, trt)
    with pytest.raises(MissingBackend, match=message) as caught:
        opened(built)
    assert caught.value.exit_status == 3
    assert caught.value.mend


def test_a_bundle_without_engines_is_refused(built: dict[str, Path], trt: FakeTensorRT, tmp_path: Path) -> None:
    bundle = tiny.bundle_at(tmp_path / "bundle", tiny.checkpoint(tmp_path / "checkpoint"))
    with pytest.raises(UsageError, match="no graphs for TensorRT"):
        Bundle.open(bundle, backend="tensorrt")
    with pytest.raises(MissingBackend, match="there are no engines here"):
        opened(built, "plain")
    with pytest.raises(UsageError, match="there is no back end 'gpu'"):
        Bundle.open(built["plain"], backend="gpu")


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaGraphLaunch", "cudaStreamCreateWithFlags"])
def test_a_failing_gpu_is_no_bug(built: dict[str, Path], trt: FakeTensorRT, function: str) -> None:
    trt.cuda.refuse.add(function)
    with pytest.raises(EECompileError, match=f"{function} failed: cudaErrorDouble"):
        tiny.tokens(opened(built), [5, 6], 6, stop=())


def test_the_plugin_that_engines_call_is_checked(
    built: dict[str, Path], trt: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libeecompile_plugins.so"
    library.write_bytes(b"a library")
    sha256 = hashlib.sha256(b"a library").hexdigest()
    bundle = add_engines(Path(shutil.copytree(built["plain"], tmp_path / "bundle")), plugin=sha256)
    loaded: list[Path] = []
    monkeypatch.setattr(backends, "load_library", lambda module, found: loaded.append(found.path))
    monkeypatch.setattr(backends, "find_library", lambda given: given and honest_library(given))
    with pytest.raises(IntegrityError, match="another plugin library"):
        Bundle.open(bundle, backend="tensorrt")
    assert trt.deserialised == []
    Bundle.open(bundle, backend="tensorrt", plugin=library)
    assert loaded == [library]
    with pytest.raises(UsageError, match=r"call no library(.|\n)*mend: leave --plugin out"):
        Bundle.open(built["engines"], backend="tensorrt", plugin=library, decision="pinned")
    for backend in ("onnxruntime", "auto"):
        with pytest.raises(UsageError, match=r"libeecompile_plugins\.so: engines alone call .* is onnxruntime\n"):
            Bundle.open(built["plain"], backend=backend, plugin=library)
