"""Weights for a stripped engine, from the ONNX file that it was built from; on the GPU, after deserialising.

The names of weights are the ONNX file's, so the parser of the same TensorRT finds where each belongs.
"""

from pathlib import Path
from typing import Any

from eecompile.errors import IntegrityError

_SHOWN = 4


def refit_engine(trt: Any, engine: Any, onnx: Path, logger: Any) -> None:
    """Put the weights of the graph at `onnx`, and of the files it names, into `engine`. `trt` is the tensorrt module.

    onnx: the graph that the record names (records.check has compared its hash). Raises IntegrityError where weights do
    not fit or some are missing.
    """
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(onnx)):
        found = "; ".join(str(parser.get_error(i).desc()) for i in range(min(parser.num_errors, _SHOWN)))
        _refuse(f"its weights do not fit the engine: {found or 'the parser does not say why'}", onnx)
    if missing := list(refitter.get_missing_weights()):
        _refuse(f"{len(missing)} weights of the engine are not in it: {', '.join(missing[:_SHOWN])}", onnx)
    if not refitter.refit_cuda_engine():
        _refuse("TensorRT does not take its weights", onnx)


def _refuse(what: str, onnx: Path) -> None:
    mend = "copy the bundle again, or build its engines without --strip"
    raise IntegrityError(what, where=str(onnx), mend=mend)
