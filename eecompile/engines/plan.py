"""The build plan: what a builder has to know of a bundle's device graphs, segments/device_plan.json.

It is written with the bundle and read where the engines are made, which may be another machine with nothing of the
compiler on it but this package. Files are the core's, so the manifest vouches for them.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator
from typing_extensions import Self

from eecompile import contract as c
from eecompile.errors import IntegrityError
from eecompile.schema import ComputeType, Name, PlainName, Precision, Sha256, Strict
from eecompile.target import Version

MAX_PLAN_BYTES = 16 << 20
MAX_PROFILES = 8
_AGAIN = "build the bundle again with `eecompile build`"

Size = Annotated[int, Field(ge=0, le=1 << 32)]
Dims = Annotated[list[Size], Field(max_length=8)]
ProfileName = Literal["decode", "prefill"]
Flag = Literal["strongly_typed"]


class ShapeRange(Strict):
    """The shapes that an input may have in one profile, dimension by dimension; engines are tuned for `opt`."""

    min: Dims
    opt: Dims
    max: Dims

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ValueError("the shapes of a range differ in rank")
        if any(not a <= b <= d for a, b, d in zip(self.min, self.opt, self.max, strict=True)):
            raise ValueError(f"not min <= opt <= max: {self.min}, {self.opt}, {self.max}")
        return self


class ProfileShapes(Strict):
    """One optimisation profile: the range of every input of the graph, by name, inputs of fixed shape included."""

    name: ProfileName
    shapes: Annotated[dict[Name, ShapeRange], Field(max_length=4096)]


class GraphPlan(Strict):
    """One engine to build. path, weights: its ONNX file and the files that its weights lie in, in the bundle. sha256:
    of the ONNX file. plugin: the exit decision is in it. profiles: in the order of their indices in the engine.

    flags: what its network has to be made with. in_place: outputs that are bound to the address of an input, by the
    input's name; where the dialect has no operator for that, `copied` has them, and each needs memory of its own: after
    a pass the runtime copies them over those inputs.
    """

    name: PlainName
    path: Name
    sha256: Sha256
    weights: Annotated[list[Name], Field(max_length=c.MAX_FILES)]
    plugin: bool
    flags: Annotated[list[Flag], Field(max_length=8)]
    profiles: Annotated[list[ProfileShapes], Field(min_length=1, max_length=MAX_PROFILES)]
    in_place: Annotated[dict[Name, Name], Field(max_length=4096)] = Field(default_factory=dict)
    copied: Annotated[dict[Name, Name], Field(max_length=4096)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _profiles_agree(self) -> Self:
        names = [profile.name for profile in self.profiles]
        if len(set(names)) != len(names):
            raise ValueError(f"{self.name} has a profile twice")
        if any(profile.shapes.keys() != self.profiles[0].shapes.keys() for profile in self.profiles):
            raise ValueError(f"the profiles of {self.name} name different inputs")
        return self


class BuildPlan(Strict):
    """What to build for a target. `graphs` in the order in which a pass runs them.

    compute: the type of products and attention inside of the graphs. context, slots, length: the most positions of a
    sequence, the most sequences of a pass, and the rows of every cache. sm, tensorrt, tensorrt_below, cuda: as the
    target's; an engine for anything else is not this plan's. plugin: how the exit decision gets into an engine: never
    (TensorRT-RTX has no plugins and takes the function's body), by the plugin where the library is there and by the
    body elsewhere, or by the plugin alone, since the graphs have no body.
    """

    format: Literal["eecompile-build-plan"] = "eecompile-build-plan"
    version: Literal[1] = 1
    target: PlainName
    backend: Literal["tensorrt", "tensorrt_rtx"]
    dialect: Literal["modern", "classic"]
    opset: Annotated[int, Field(ge=13, le=64)]
    compute: ComputeType
    cache: Literal["fp32", "fp16"]
    precision: Precision
    context: Annotated[int, Field(ge=1, le=c.MAX_CONTEXT)]
    slots: Annotated[int, Field(ge=1, le=4096)]
    length: Annotated[int, Field(ge=1, le=2 * c.MAX_CONTEXT)]
    sm: Annotated[list[Annotated[int, Field(ge=50, le=199)]], Field(max_length=32)]
    tensorrt: Version
    tensorrt_below: Version
    cuda: Version
    plugin: Literal["never", "preferred", "required"]
    graphs: Annotated[list[GraphPlan], Field(min_length=1, max_length=4 * c.MAX_EXITS)]

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if len({graph.name for graph in self.graphs}) != len(self.graphs):
            raise ValueError("two graphs have one name")
        return self

    def graph(self, name: str) -> GraphPlan:
        """The graph called `name`, as "segment_0" or "head"; KeyError where there is none."""
        return {graph.name: graph for graph in self.graphs}[name]


def read_plan(path: Path) -> BuildPlan:
    """The build plan at `path`. Raises IntegrityError where it is missing or does not follow the schema."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_PLAN_BYTES + 1)
        if len(data) > MAX_PLAN_BYTES:
            raise IntegrityError(f"a build plan of more than {MAX_PLAN_BYTES} bytes", where=str(path), mend=_AGAIN)
        return BuildPlan.model_validate_json(data, strict=True)
    except ValidationError as e:
        found = e.errors(include_url=False, include_context=False, include_input=False)[0]
        reason = f"{'.'.join(map(str, found['loc'])) or 'document'}: {found['msg']}"
        raise IntegrityError(f"not a build plan: {reason}", where=str(path), mend=_AGAIN) from e
    except OSError as e:
        raise IntegrityError(f"the build plan cannot be read ({e.strerror})", where=str(path), mend=_AGAIN) from e


def write_plan(path: Path, plan: BuildPlan) -> None:
    """Write a plan as JSON, the same bytes for the same plan. Raises OSError."""
    path.write_text(plan.model_dump_json(indent=1) + "\n", encoding="utf-8")
