"""A device's graphs in a manifest: they take the place of the bundle's own, or the bundle is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import accept_manifest, edit_document, policy_fields, refuse, write_core, write_graph

from eecompile import contract as c
from eecompile.bundle.read import read_bundle
from eecompile.bundle.write import BundleWriter


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    with BundleWriter(tmp_path / "bundle") as writer:
        fields = write_core(writer.path)
        own, folder = fields["graphs"], writer.path / "segments"

        def copied(info: Any) -> Any:
            return write_graph(folder, "device_" + Path(info.path).stem, info.inputs, info.layers)

        graphs = {k: [copied(i) for i in v] if isinstance(v, list) else copied(v) for k, v in own.items()}
        (writer.path / c.DEVICE_PLAN).write_text("{}")
        device = {"target": "cpu", "dialect": "modern", "opset": 24, "compute": "float16", "cache": "fp32"}
        writer.commit({**fields, "device": {**device, "graphs": graphs, "plan": c.DEVICE_PLAN}},
                      overlays={c.POLICY: policy_fields()})  # fmt: skip
    return tmp_path / "bundle"


def first(m: dict[str, Any]) -> dict[str, Any]:
    """The first of the device's segments."""
    found: dict[str, Any] = m["device"]["graphs"]["segments"][0]
    return found


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "target": (lambda m: m["device"].update(target="orin"), "another target"),
    "a path": (lambda m: m["device"].update(target="../../victim"), "target"),
    "cache": (lambda m: m["device"].update(cache="fp16"), "another target or cache"),
    "reference": (lambda m: m["device"]["graphs"].update(reference=m["graphs"]["embed"]), "no reference"),
    "layers": (lambda m: first(m).update(layers=2), "do not have the inputs"),
    "input": (lambda m: first(m)["inputs"][0].update(name="other"), "do not have the inputs"),
    "one less": (lambda m: m["device"]["graphs"]["segments"].pop(), "do not have the inputs"),
    "moved": (lambda m: m["device"]["graphs"]["heads"].append(m["device"]["graphs"]["exits"].pop()), "do not have"),
    "one file twice": (lambda m: first(m).update(path=m["device"]["graphs"]["segments"][1]["path"]), "each its own"),
    "no plan": (lambda m: m["device"].update(plan="segments/other.json"), "not files of the bundle"),
    "another graph": (lambda m: first(m).update(path="segments/device_exit_0.onnx"), "each its own"),
}


def test_it_is_read_with_its_device_and_without(bundle: Path, pristine: Path) -> None:
    device = read_bundle(bundle).manifest.device
    assert device is not None
    assert [g.path for g in device.graphs.segments] == [f"segments/device_segment_{i}.onnx" for i in range(2)]
    assert read_bundle(pristine).manifest.device is None


def test_a_bundle_from_before_there_were_devices_is_read(pristine: Path, tmp_path: Path) -> None:
    import shutil

    old = Path(shutil.copytree(pristine, tmp_path / "old"))
    edit_document(old / c.MANIFEST, lambda m: m.pop("device"))
    accept_manifest(old)
    assert read_bundle(old).manifest.device is None


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_refused(bundle: Path, name: str) -> None:
    edit, message = FAULTS[name]
    edit_document(bundle / c.MANIFEST, edit)
    accept_manifest(bundle)
    refuse(bundle, message)


def test_its_graphs_are_checked_like_the_others(bundle: Path) -> None:
    (bundle / "segments/device_segment_0.onnx").write_bytes((bundle / "segments/device_exit_0.onnx").read_bytes())
    refuse(bundle, "device_segment_0", integrity="hash")
