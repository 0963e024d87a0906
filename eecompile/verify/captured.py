"""Which passes of engines were no CUDA graphs: they say what the others say, and take longer."""

from eecompile.engines.trt_runtime import TrtEngine
from eecompile.runtime import Bundle
from eecompile.verify.report import Check

NAME = "captured"


def check_captured(bundle: Bundle) -> list[Check]:
    """The engines whose repeated passes could not be captured, and why; none on back ends that capture nothing. It
    passes whatever it finds, which is no fault of the bundle: call it once everything else has run."""
    engine = bundle.graphs.embed
    if not isinstance(engine, TrtEngine):
        return []
    found = engine.shared.uncaptured
    said = "; ".join(f"{path}: {why}" for path, why in found.items())
    note = f"enqueued one by one: {said}" if found else "each pass that repeats is one CUDA graph"
    return [Check(NAME, True, {"uncaptured": len(found)}, note=note)]
