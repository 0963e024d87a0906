"""One engine to build, and what came of it: what the building process reads and answers (child.py)."""

from typing import Annotated, Literal

from pydantic import Field

from eecompile import contract as c
from eecompile.engines.plan import ProfileShapes
from eecompile.schema import Name, Sha256, Strict, Text

Module = Literal["tensorrt", "tensorrt_rtx"]


class EngineJob(Strict):
    """Build `onnx` into `out` with the package `module`.

    sm: compute capabilities of one engine for several GPUs (TensorRT-RTX alone; empty: the GPU at hand). plugin: the
    library that has the exit decision. aot: the engine is to carry it instead. decides: the graph has that node, which
    has to become a plugin layer in both cases. stripped, refit: as EngineOptions. timing_cache: a file that builds
    share.
    """

    module: Module
    graph: Name
    onnx: Text
    out: Text
    profiles: Annotated[list[ProfileShapes], Field(min_length=1, max_length=16)]
    sm: Annotated[list[Annotated[int, Field(ge=50, le=199)]], Field(max_length=32)] = Field(default_factory=list)
    plugin: Text | None = None
    aot: bool = False
    decides: bool = False
    stripped: bool = False
    refit: bool = False
    timing_cache: Text | None = None


class EngineDone(Strict):
    """The engine that was built. version: of the package. layers: of the parsed network by kind. peak: bytes resident
    at most. seconds: of parsing and building."""

    version: Text
    bytes: Annotated[int, Field(ge=1, le=c.MAX_FILE_BYTES)]
    sha256: Sha256
    layers: dict[Name, int]
    peak: int
    seconds: float


class EngineFault(Strict):
    """Why there is none, as an EECompileError. `missing`: for want of a package, a GPU or a library."""

    what: Text
    where: Text = ""
    mend: Text = ""
    missing: bool = False
