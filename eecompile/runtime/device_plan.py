"""The build plan of a bundle's device graphs, held against the manifest: a plan is a file like any other, and what it
says of the graphs decides what engines are built and which buffers they share."""

from eecompile.bundle.manifest import Manifest
from eecompile.bundle.read import BundleFiles
from eecompile.engines.plan import BuildPlan, GraphPlan, read_plan
from eecompile.errors import IntegrityError, UsageError
from eecompile.schema import GraphInfo


def device_plan(files: BundleFiles) -> BuildPlan:
    """The bundle's build plan. Raises UsageError where it has none, IntegrityError where it is not of this bundle."""
    device = files.manifest.device
    if device is None:
        raise UsageError(
            f"a bundle for the target {files.manifest.target} has no device graphs and no engines: "
            "ONNX Runtime runs it as it is",
            where=str(files.path), mend="build it for a device: eecompile build CKPT --target NAME (eecompile targets)",
        )  # fmt: skip
    path = files.path / device.plan
    plan = read_plan(path)
    if fault := plan_fault(plan, files.manifest):
        mend = "build the bundle again with `eecompile build`"
        raise IntegrityError(f"the build plan is not of this bundle: {fault}", where=str(path), mend=mend)
    return plan


def plan_fault(plan: BuildPlan, manifest: Manifest) -> str | None:
    """Why the plan is not that of the manifest's device graphs, or None."""
    device = manifest.device
    assert device is not None
    wanted = {name: getattr(device, name) for name in ("target", "dialect", "opset", "compute", "cache")}
    wanted |= {"precision": manifest.precision, "context": manifest.model.context, "slots": manifest.slots}
    wanted["length"] = manifest.model.context + manifest.slack
    for name, value in wanted.items():
        if (found := getattr(plan, name)) != value:
            return f"{name} is {found}, and the manifest says {value}"
    infos = {info.path: info for info in device.graphs.all()}
    if sorted(graph.path for graph in plan.graphs) != sorted(infos):
        return "it has other graphs than the manifest"
    faults = (_graph_fault(graph, infos[graph.path], manifest) for graph in plan.graphs)
    return next((fault for fault in faults if fault is not None), None)


def _graph_fault(graph: GraphPlan, info: GraphInfo, manifest: Manifest) -> str | None:
    if graph.sha256 != manifest.files[graph.path].sha256:
        return f"{graph.name} has another SHA-256 than the manifest's"
    if unknown := sorted(set(graph.weights) - manifest.files.keys()):
        return f"{graph.name} has weights in {unknown[0]}, which is no file of the bundle"
    inputs, outputs = {t.name for t in info.inputs}, {t.name for t in info.outputs}
    if any(profile.shapes.keys() != inputs for profile in graph.profiles):
        return f"the profiles of {graph.name} are of other inputs than it has"
    pairs = {**graph.in_place, **graph.copied}
    if pairs.keys() - inputs or set(pairs.values()) - outputs:
        return f"{graph.name} updates what is no input or output of it"
    return None
