"""What engines were built from and for: `engines/<target>/record.json`, checked before any engine is deserialised.

A serialised engine runs on the GPU architecture and the TensorRT version that it was built with, holds the weights of
one graph and calls one build of the plugin. Deserialising another one fails late and in the vendor's words, or worse,
does not fail; so what was, is written down beside the engines, and compared first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from eecompile import contract as c
from eecompile.engines.files import sha256_of, write_whole
from eecompile.errors import IntegrityError, MissingBackend
from eecompile.schema import ComputeType, Name, PlainName, Sha256, Strict, Text

RECORD = "record.json"
MAX_RECORD_BYTES = 4 << 20
TOLD_LAYERS = {
    "ATTENTION_INPUT": "attention", "KV_CACHE_UPDATE": "cache update", "ROTARY_EMBEDDING": "rotary",
    "DEQUANTIZE": "dequantise", "TOPK": "top-k", "PLUGIN_V3": "plugin",
}  # fmt: skip
BUILD = "build them on this machine with `eecompile engines BUNDLE`"

Sm = Annotated[int, Field(ge=50, le=199)]
VersionText = Annotated[str, Field(pattern=r"^\d{1,4}(\.\d{1,6}){1,4}[a-z0-9.+-]{0,40}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,95}\.plan$")]


class EngineMismatch(IntegrityError):
    """Engines that were built for another machine, TensorRT, plugin or bundle."""


class EngineOptions(Strict):
    """How engines were built. stripped: without weights, which a refit at loading puts in. refit: weights may be
    replaced. flags: names of what else the builder was told."""

    compute: ComputeType
    stripped: bool = False
    refit: bool = False
    flags: Annotated[list[Name], Field(max_length=64)] = Field(default_factory=list)


class EngineFile(Strict):
    """One engine. onnx: of the graph that it was built from. profiles: names of its optimisation profiles in the order
    of their indices. layers: layers of the parsed network by kind. seconds: of the build; peak: bytes that the building
    process had resident at most, 0 where it is not known."""

    file: FileName
    onnx: Sha256
    bytes: Annotated[int, Field(ge=1, le=c.MAX_FILE_BYTES)]
    sha256: Sha256
    profiles: Annotated[list[Name], Field(min_length=1, max_length=16)]
    layers: Annotated[dict[Name, Annotated[int, Field(ge=1, le=1 << 24)]], Field(max_length=256)]
    seconds: Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]
    peak: Annotated[int, Field(ge=0, le=1 << 50)] = 0


class EngineRecord(Strict):
    """The engines of one target. `core`: the digest of the bundle's manifest. `sm`: compute capabilities that every
    engine runs on. `plugin`: the SHA-256 of the plugin library, None where no engine calls it. `built_on`: the GPU."""

    format: Literal["eecompile-engines"] = "eecompile-engines"
    version: Literal[1] = 1
    core: Sha256
    target: PlainName
    backend: Literal["tensorrt", "tensorrt_rtx"]
    sm: Annotated[list[Sm], Field(min_length=1, max_length=32)]
    tensorrt: VersionText
    cuda: VersionText | None
    plugin: Sha256 | None
    built_on: Text = ""
    options: EngineOptions
    engines: Annotated[dict[Name, EngineFile], Field(max_length=c.MAX_FILES)] = Field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """What is here. sm: the GPU's compute capability, as 87. tensorrt, cuda: versions as texts. plugin: the SHA-256 of
    the plugin library that would be loaded, None where there is none."""

    sm: int
    tensorrt: str
    cuda: str | None
    plugin: str | None = None


def engines_folder(bundle: Path, target: str) -> Path:
    """Where the engines of `target` lie."""
    return bundle / "engines" / target


def read_record(folder: Path) -> EngineRecord:
    """The record in `folder`. Raises MissingBackend where there is none, IntegrityError where it is not valid."""
    path = folder / RECORD
    if not path.is_file() or path.is_symlink():
        raise MissingBackend("there are no engines here", where=str(folder), mend=BUILD)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_RECORD_BYTES + 1)
        if len(data) > MAX_RECORD_BYTES:
            raise ValueError(f"more than {MAX_RECORD_BYTES} bytes")
        return EngineRecord.model_validate_json(data, strict=True)
    except ValidationError as e:
        found = e.errors(include_url=False, include_context=False, include_input=False)[0]
        reason = f"{'.'.join(map(str, found['loc'])) or 'document'}: {found['msg']}"
        raise IntegrityError(f"not a record of engines: {reason}", where=str(path), mend=BUILD) from e
    except (OSError, ValueError) as e:
        raise IntegrityError(f"the record of the engines cannot be read ({e})", where=str(path), mend=BUILD) from e


def write_record(folder: Path, record: EngineRecord) -> None:
    """Replace the record in `folder` in one step. Raises OSError."""
    write_whole(folder / RECORD, [record.model_dump_json(indent=1).encode() + b"\n"])


def check(record: EngineRecord, machine: Machine, core: str, onnx: Mapping[str, str], *, where: Path) -> None:
    """Refuse engines that are not of this machine and this bundle, before any is deserialised.

    core: the digest of the bundle's manifest. onnx: SHA-256 of every graph that needs an engine, by its name.
    Raises EngineMismatch naming both values; MissingBackend where engines have yet to be built.
    """
    if missing := sorted(set(onnx) - set(record.engines)):
        what = f"{len(missing)} of {len(onnx)} engines are not built: {', '.join(missing[:4])}"
        raise MissingBackend(what, where=str(where), mend=BUILD)
    if machine.sm not in record.sm:
        _refuse(where, "compute capability", ", ".join(map(str, record.sm)), machine.sm)
    if not _same_version(machine.tensorrt, record.tensorrt):
        _refuse(where, "TensorRT", record.tensorrt, machine.tensorrt)
    if not _cuda_fits(record.cuda, machine.cuda):
        _refuse(where, "CUDA", record.cuda, machine.cuda)
    if record.plugin is not None and machine.plugin != record.plugin:
        _refuse(where, "plugin library", record.plugin, machine.plugin or "none")
    for name, sha256 in onnx.items():
        if record.engines[name].onnx != sha256:
            _refuse(where, f"graph {name}", record.engines[name].onnx, sha256, here="the bundle's")
    if record.core != core:
        _refuse(where, "bundle", record.core, core, here="this one")


def checked_engine(folder: Path, record: EngineRecord, name: str, *, hashed: bool = True) -> Path:
    """The file of engine `name`, which is the one that was recorded: in size, and if `hashed` in SHA-256 too.

    Raises IntegrityError.
    """
    info = record.engines[name]
    path = folder / info.file
    if path.is_symlink() or not path.is_file():
        raise IntegrityError("the engine is missing", where=str(path), mend=BUILD)
    if path.stat().st_size != info.bytes:
        what = f"truncated or changed: {path.stat().st_size} bytes instead of {info.bytes}"
        raise IntegrityError(what, where=str(path), mend=BUILD)
    if hashed and sha256_of(path) != info.sha256:
        raise IntegrityError("changed: its SHA-256 is not the record's", where=str(path), mend=BUILD)
    return path


def _same_version(one: str, other: str) -> bool:
    """Whether these agree in as many numbers as both say: packages leave a version's build out, or add their own."""
    return all(a == b for a, b in zip(one.split("."), other.split("."), strict=False))


def _cuda_fits(built: str | None, here: str | None) -> bool:
    """A newer minor version runs what an older one has built; another major version does not."""
    if built is None:
        return True
    if here is None:
        return False
    old, new = (tuple(int(part) for part in text.split(".")[:2]) for text in (built, here))
    return old[0] == new[0] and old <= new


def _refuse(where: Path, what: str, built: object, found: object, *, here: str = "this machine's") -> None:
    raise EngineMismatch(
        f"the engines were built for another {what}: {built}, and {here} is {found}",
        where=str(where), mend=BUILD,
    )  # fmt: skip


def shown_layers(engine: EngineFile) -> str:
    """The fused layers that a parser has to find, as "attention 2, cache update 4", and the number of all others."""
    found = {text: engine.layers.get(kind, 0) for kind, text in TOLD_LAYERS.items()}
    told = [f"{text} {count}" for text, count in found.items() if count]
    rest = sum(engine.layers.values()) - sum(found.values())
    return ", ".join([*told, f"{'others' if told else 'plain'} {rest}"])


def check_engines(bundle: Path) -> None:
    """Hold every engine file of a bundle against its record. Raises IntegrityError."""
    for folder in _folders(bundle):
        record = read_record(folder)
        for name in record.engines:
            checked_engine(folder, record, name)


def all_records(bundle: Path) -> list[EngineRecord]:
    """The records of every target that a bundle has engines for. Raises IntegrityError where one is not valid."""
    return [read_record(folder) for folder in _folders(bundle)]


def _folders(bundle: Path) -> list[Path]:
    """Where a bundle has engines."""
    return [path.parent for path in sorted((bundle / "engines").glob(f"*/{RECORD}"))]
