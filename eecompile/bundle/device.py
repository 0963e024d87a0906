"""Do a device's graphs take the place of the bundle's own?"""

from typing import TYPE_CHECKING

from eecompile import contract as c

if TYPE_CHECKING:
    from eecompile.bundle.manifest import Graphs, Manifest


def device_fault(manifest: "Manifest") -> str | None:
    """Why the manifest's device graphs are not those of its model, or None."""
    device = manifest.device
    if device is None:
        return None
    if (device.target, device.cache) != (manifest.target, manifest.cache):
        return "the device's graphs are for another target or cache type than the bundle"
    if device.graphs.reference is not None:
        return "a device has no reference graph"
    length = manifest.model.context + manifest.slack
    if _interfaces(device.graphs) != _interfaces(manifest.graphs, length):
        return "the device's graphs do not have the inputs, outputs and layers of the bundle's own"
    named = [graph.path for graph in device.graphs.all()]
    if len(set(named)) != len(named) or {*named, device.plan} - manifest.files.keys():
        return "the device's graphs and plan are not files of the bundle, each its own"
    return None


def _interfaces(graphs: "Graphs", length: int | None = None) -> object:
    """What two sets of graphs have in common where one can take the other's place: all but the files' names. length:
    of the caches, where it is to be fixed."""

    def stripped(value: object) -> object:
        if isinstance(value, dict):
            return {key: stripped(member) for key, member in value.items() if key != "path"}
        if isinstance(value, list):
            return [stripped(member) for member in value]
        return length if length is not None and value == c.LENGTH else value

    return stripped(graphs.model_dump(exclude={"reference"}))
