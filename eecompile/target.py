"""Targets: what a device is and what a build for it may use, one TOML file each, loaded by name or by path."""

import sys
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from eecompile.errors import UsageError
from eecompile.schema import Name, Precision, Strict, Text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "targets"
Version = Annotated[str, Field(pattern=r"^(\d{1,3}\.\d{1,3})?$")]


class Target(Strict):
    """A device. Rates are what its data sheet promises, 0 where that depends on the machine.

    backend: what runs the graphs. dialect: what its parser takes, opset-24 operators (`modern`) or plain ones of opset
    20 (`classic`). context, batch, pending: most that a build may ask for. built: where engines are made: nowhere, since
    none are needed (`anywhere`), on the device, or wherever the compiler runs (`here`). sm: compute capabilities, as 87.
    tensorrt: the first version and, exclusive, the last (`tensorrt_below`) that bundles for it may meet; cuda: the
    oldest. memory: bytes; unified where host and device share them. bandwidth: bytes/s of memory. flops: dense float
    operations/s by precision.
    """

    name: Name
    description: Text
    backend: Literal["onnxruntime", "tensorrt", "tensorrt_rtx"]
    dialect: Literal["modern", "classic"] = "modern"
    precisions: Annotated[list[Precision], Field(min_length=1)]
    precision: Precision
    opset: Annotated[int, Field(ge=13, le=64)]
    context: Annotated[int, Field(ge=1)]
    batch: Annotated[int, Field(ge=1)]
    pending: Annotated[int, Field(ge=1, le=63)]
    built: Literal["anywhere", "device", "here"]
    sm: Annotated[list[Annotated[int, Field(ge=50, le=199)]], Field(max_length=32)] = Field(default_factory=list)
    tensorrt: Version = ""
    tensorrt_below: Version = ""
    cuda: Version = ""
    memory: Annotated[int, Field(ge=0, le=1 << 50)] = 0
    unified: bool = False
    bandwidth: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    flops: dict[Precision, float] = Field(default_factory=dict)
    sources: list[Text] = Field(default_factory=list)

    @model_validator(mode="after")
    def _default_is_one_of_them(self) -> Self:
        if self.precision not in self.precisions:
            raise ValueError(f"the default precision {self.precision} is not among the precisions")
        return self


@cache
def target_names() -> tuple[str, ...]:
    """The targets that come with eecompile."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def load_target(name: str) -> Target:
    """The target called `name`, or described by the TOML file at that path; raises UsageError listing the names."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file() or (name not in target_names() and not name.endswith(".toml")):
        raise UsageError(
            f"there is no target {name!r}", mend=f"targets: {', '.join(target_names())}, or a path to a .toml file"
        )
    try:
        return Target.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as e:
        raise UsageError(f"not a valid target: {e}", where=str(path)) from e
