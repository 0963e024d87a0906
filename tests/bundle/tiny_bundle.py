"""A bundle small enough to break in hundreds of ways: two layers, one exit with a learned gate, external weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from eecompile import contract as c
from eecompile.bundle.digest import document_digest, document_layout, file_sha256, gates_digest
from eecompile.bundle.gates import encode_gate
from eecompile.bundle.manifest import ExitInfo, ExitPolicy
from eecompile.bundle.read import read_bundle
from eecompile.bundle.write import BundleWriter, write_overlay
from eecompile.errors import IntegrityError
from eecompile.schema import GraphInfo, TensorInfo

HIDDEN, VOCAB, UNITS = 4, 10, 3
GATES = ["learned", "max_prob"]
CALIBRATION = "overlays/calibration-catch_up.json"
PROFILE = "overlays/profile-here.json"
SAFE = {"learned": 0.9, "max_prob": 0.8}


def external_tensor(name: str, dims: list[int], location: str, offset: int, dtype: int = TensorProto.FLOAT) -> Any:
    """A tensor in a weight file, in the writer's form."""
    proto = onnx.TensorProto(name=name, data_type=dtype, dims=dims, data_location=TensorProto.EXTERNAL)
    length = int(np.prod(dims)) * helper.tensor_dtype_to_np_dtype(dtype).itemsize
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        proto.external_data.add(key=key, value=str(value))
    return proto


def write_graph(folder: Path, name: str, inputs: list[TensorInfo], layers: int = 0) -> GraphInfo:
    """A graph that multiplies its first input by an external weight; its output has the input's interface."""
    outputs = [TensorInfo(name=c.HIDDEN_OUT, dtype=inputs[0].dtype, shape=inputs[0].shape)]
    values = [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, t.shape) for t in (*inputs, *outputs)]
    weight = external_tensor("w", [HIDDEN], "all.weights", 16)
    node = helper.make_node("Mul", [inputs[0].name, "w"], [c.HIDDEN_OUT])
    graph = helper.make_graph([node], name, values[:-1], values[-1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    return GraphInfo(path=f"segments/{name}.onnx", inputs=inputs, outputs=outputs, layers=layers)


def write_core(root: Path, seed: int = 0) -> dict[str, Any]:
    """Write the core's files under `root` and return the manifest's fields."""
    folder = root / "segments"
    folder.mkdir()
    (folder / "all.weights").write_bytes(np.random.default_rng(seed).bytes(64))
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "tokenizer.json").write_text('{"é": 1}', encoding="utf-8")
    hidden = [TensorInfo(name=c.HIDDEN, dtype="float32", shape=["B", "R", HIDDEN])]
    flat = [TensorInfo(name=c.HIDDEN, dtype="float32", shape=["N", HIDDEN])]
    graphs = {
        "embed": write_graph(folder, "embed", hidden),
        "segments": [write_graph(folder, f"segment_{i}", hidden, layers=1) for i in range(2)],
        "exits": [write_graph(folder, "exit_0", flat)],
        "head": write_graph(folder, "head", flat),
    }
    sizes = {"layers": 2, "hidden": HIDDEN, "heads": 2, "kv_heads": 1, "head_dim": 2, "vocab": VOCAB, "context": 16}
    return {
        "eecompile": "0.1.0",
        "model": {"family": "llama", **sizes, "bos": 1, "eos": [2]},
        "target": "cpu",
        "precision": "fp32",
        "kv_rules": ["catch_up"],
        "pending_cap": 8,
        "prefill_rows": 128,
        "minimum_rows": 2,
        "slack": 64,
        "slots": 1,
        "exits": [{"layer": 1, "adapter": "norm", "gates": GATES, "gate_units": UNITS}],
        "schedule": [{"segment": 0, "cache": 0, "exit": 0}, {"segment": 1, "cache": 1}],
        "caches": [1, 1],
        "graphs": graphs,
        "tokenizer": True,
        "provenance": {"source": "hand-made", "seed": seed, "rate": 0.5, "unset": None},
    }


def policy_fields(**changes: Any) -> dict[str, Any]:
    """A policy whose only exit drafts and has a gate, and does not exit in confident mode."""
    rng = np.random.default_rng(1)
    shapes = [(HIDDEN, UNITS), (UNITS,), (UNITS, 1), (1,)]
    gate = encode_gate(*(rng.standard_normal(shape).astype(np.float32) for shape in shapes))
    exit_ = {"layer": 1, "confident": None, "draft": {"learned": 0.5, "max_prob": 0.0}, "gate": gate.model_dump()}
    return {"exits": [{**exit_, **changes}]}


def calibration_fields(**changes: Any) -> dict[str, Any]:
    """A calibration that allows SAFE at its chosen point, 1."""
    info = ExitInfo(layer=1, adapter="norm", gates=GATES, gate_units=UNITS)  # type: ignore[arg-type]
    gates = gates_digest([info], [ExitPolicy.model_validate(policy_fields()["exits"][0])])
    measured = {"risk": 0.01, "exit_rate": 0.2, "mean_depth": 1.8}
    path = [
        {"level": 0.0, "thresholds": [None], "p_value": 0.0, **measured},
        {"level": 0.5, "thresholds": [SAFE], "p_value": 0.04, **measured},
        {"level": 1.0, "thresholds": [{"learned": 0.0, "max_prob": 0.0}], "p_value": 0.9, **measured},
    ]
    sizes = {"pending_cap": 8, "documents": 40, "tokens": 4000, "risk": 0.02, "error": 0.05}
    names = {"precision": "fp32", "kv": "catch_up", "method": "learn-then-test", "loss": "disagreement"}
    return {**names, **sizes, "data": "a" * 64, "gates": gates, "path": path, "chosen": 1, **changes}


def profile_fields() -> dict[str, Any]:
    """Latencies of one pass."""
    return {"device": "here", "threads": 2, "passes": [{"graph": "head", "rows": 1, "length": 0, "seconds": 0.001}]}


def build(path: Path, seed: int = 0) -> Path:
    """A bundle with a calibration, a profile and a policy that exits as boldly as calibrated."""
    with BundleWriter(path) as writer:
        writer.commit(write_core(writer.path, seed), overlays={c.POLICY: policy_fields()})
    write_overlay(path, CALIBRATION, calibration_fields())
    write_overlay(path, PROFILE, profile_fields())
    write_overlay(path, c.POLICY, policy_fields(confident=SAFE))
    return path


def edit_document(path: Path, edit: Callable[[dict[str, Any]], object], *, digest: bool = True) -> None:
    """Change a manifest or overlay as an attacker would: consistently, with a new digest and the right layout."""
    document = json.loads(path.read_text())
    edit(document)
    if digest:
        document["digest"] = document_digest(document)
    path.write_bytes(document_layout(document))


def accept_core(bundle: Path) -> None:
    """Make manifest and overlays agree with whatever the core's files hold now."""

    def relist(manifest: dict[str, Any]) -> None:
        for name in manifest["files"]:
            size = (bundle / name).stat().st_size
            manifest["files"][name] = {"bytes": size, "sha256": file_sha256(bundle / name)}

    edit_document(bundle / c.MANIFEST, relist)
    accept_manifest(bundle)


def accept_manifest(bundle: Path) -> None:
    """Make the overlays name the manifest's current digest."""
    digest = json.loads((bundle / c.MANIFEST).read_text())["digest"]
    for overlay in (bundle / "overlays").glob("*.json"):
        edit_document(overlay, lambda d: d.update(core=digest))


def refuse(bundle: Path, message: str, **options: Any) -> None:
    """Assert that the bundle is refused with a message that matches, names a file and says how to mend it."""
    with pytest.raises(IntegrityError, match=message) as caught:
        read_bundle(bundle, **options)
    assert caught.value.where
    assert caught.value.mend
    assert caught.value.exit_status == 4
