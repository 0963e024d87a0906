"""Targets: what a device is and what a build for it may use, one TOML file each, loaded by name or by path."""

import sys
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator
from typing_extensions import Self

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.schema import PlainName, Precision, Strict, Text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "targets"
CLASSIC_OPSET = 20
OLDEST = {"tensorrt": "10.3", "tensorrt_rtx": "1.0"}  # that engines are built with
Version = Annotated[str, Field(pattern=r"^(\d{1,3}\.\d{1,3})?$")]


def _or_unknown(least: float, unit: str) -> AfterValidator:
    """A number of at least so much, or 0; a file that gives gigabytes where bytes belong is not believed."""

    def check(value: float) -> float:
        if value and value < least:
            raise ValueError(f"{value:g} {unit} is less than {least:g}; 0 says that it is not known")
        return value

    return AfterValidator(check)


class Target(Strict):
    """A device. Rates are what its data sheet promises for dense operands, 0 where that depends on the machine.

    backend: what runs the graphs. dialect: what its parser takes, opset-24 operators (`modern`) or plain ones of opset
    20 (`classic`). context, batch, pending: most that a build may ask for. built: where engines are made: nowhere as
    none are needed (`anywhere`), on the device, or wherever the compiler runs (`here`). sm: compute capabilities, 87
    for 8.7. tensorrt: the first version and, exclusive, the last (`tensorrt_below`) that bundles for it may meet; cuda:
    the oldest. memory: bytes; unified where host and device share them. bandwidth: bytes/s of memory. flops:
    operations/s by the type that is multiplied. attained: the share of these rates that kernels reach. launch: seconds
    that a pass takes beyond its kernels; kernel: the least seconds of a kernel.
    """

    name: PlainName
    description: Text
    backend: Literal["onnxruntime", "tensorrt", "tensorrt_rtx"]
    dialect: Literal["modern", "classic"] = "modern"
    precisions: Annotated[list[Precision], Field(min_length=1)]
    precision: Precision
    opset: Annotated[int, Field(ge=13, le=64)]
    context: Annotated[int, Field(ge=1, le=c.MAX_CONTEXT)]
    batch: Annotated[int, Field(ge=1, le=4096)]
    pending: Annotated[int, Field(ge=1, le=63)]
    built: Literal["anywhere", "device", "here"]
    sm: Annotated[list[Annotated[int, Field(ge=50, le=199)]], Field(max_length=32)] = Field(default_factory=list)
    tensorrt: Version = ""
    tensorrt_below: Version = ""
    cuda: Version = ""
    memory: Annotated[int, Field(ge=0, le=1 << 50), _or_unknown(1e8, "bytes")] = 0
    unified: bool = False
    bandwidth: Annotated[float, Field(ge=0, le=1e15), _or_unknown(1e8, "bytes/s")] = 0.0
    flops: dict[Precision, Annotated[float, Field(ge=1e8, le=1e18)]] = Field(default_factory=dict)
    attained: Annotated[float, Field(ge=0.01, le=1)] = 1.0
    launch: Annotated[float, Field(ge=0, le=1)] = 0.0
    kernel: Annotated[float, Field(ge=0, le=0.01)] = 0.0
    sources: list[Text] = Field(default_factory=list)

    @model_validator(mode="after")
    def _default_is_one_of_them(self) -> Self:
        if self.precision not in self.precisions:
            raise ValueError(f"the default precision {self.precision} is not among the precisions")
        return self

    @model_validator(mode="after")
    def _nothing_is_there_twice(self) -> Self:
        for field, values in (("sm", self.sm), ("precisions", self.precisions)):
            if len(set(values)) != len(values):
                raise ValueError(f"{field} has an entry twice: {', '.join(map(str, values))}")
        return self

    @model_validator(mode="after")
    def _back_end_has_what_it_needs(self) -> Self:
        if (self.backend == "onnxruntime") != (self.built == "anywhere"):
            raise ValueError(f"{self.backend} is not built {self.built}: onnxruntime, and it alone, is built anywhere")
        if self.backend != "onnxruntime" and not (self.sm and self.tensorrt):
            raise ValueError(f"{self.backend} needs sm and tensorrt: what its engines are for")
        if self.backend != "onnxruntime" and _version(self.tensorrt) < _version(oldest := OLDEST[self.backend]):
            raise ValueError(f"{self.backend} {self.tensorrt} is older than {oldest}, the first that builds engines")
        if self.tensorrt_below and _version(self.tensorrt_below) <= _version(self.tensorrt):
            raise ValueError(f"tensorrt_below {self.tensorrt_below} is not above tensorrt {self.tensorrt}")
        if self.dialect == "classic" and self.opset > CLASSIC_OPSET:
            raise ValueError(f"the classic dialect stops at opset {CLASSIC_OPSET}, and opset is {self.opset}")
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
    target = _read(path)
    if target.name in target_names() and target != _read(FOLDER / f"{target.name}.toml"):
        what = f"not a valid target: {target.name} is the name of one that comes with eecompile, and this is another"
        raise UsageError(what, where=str(path), mend="give it a name of its own: bundles and engines go by the name")
    return target


def _read(path: Path) -> Target:
    try:
        return Target.model_validate(tomllib.loads(path.read_text(encoding="utf-8")), strict=True)
    except ValidationError as e:
        mend = "`eecompile targets --json` has the fields of valid ones"
        raise UsageError(f"not a valid target: {_faults(e)}", where=str(path), mend=mend) from e
    except (OSError, ValueError) as e:
        mend = f"a target is a TOML file in UTF-8; those that come with eecompile are in {FOLDER}"
        raise UsageError(f"not a valid target: {e}", where=str(path), mend=mend) from e


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part)


def _faults(error: ValidationError) -> str:
    """Each field that is refused, and why."""
    return "; ".join(
        ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, "))))
        for fault in error.errors()
    )
