"""The command that finishes a bundle on its device: engines."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eecompile.cli.console import print_json, print_table, say, stages, user_faults
from eecompile.cli.options import BUNDLE, JSON

if TYPE_CHECKING:
    from eecompile.engines.records import EngineRecord


@click.command()
@BUNDLE
@click.option("--target", help="A name or .toml file of another device than the bundle's, with the same dialect.")
@click.option("--strip", is_flag=True, help="Plans without weights, which are put in from the bundle at loading.")
@click.option("--refit", is_flag=True, help="Plans whose weights may be replaced by others.")
@click.option("--plugin", type=click.Path(path_type=Path), help="The library of the exit decision (make plugin).")
@click.option("--aot", is_flag=True, help="Engines carry its kernel and need no library; TensorRT 10.9 on, and nvcc.")
@click.option("--timing-cache", type=click.Path(path_type=Path), help="A file to share. Default: beside the engines.")
@JSON
@user_faults
def engines(
    bundle: Path, target: str | None, strip: bool, refit: bool, plugin: Path | None, aot: bool,
    timing_cache: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Build BUNDLE's engines on this machine, the device that they are for. Goes on where it was interrupted."""
    from eecompile.engines.build import EngineRequest
    from eecompile.pipeline_engines import engines as build
    from eecompile.target import load_target

    request = EngineRequest(strip, refit, None if timing_cache is None else timing_cache.absolute(), aot)
    other = None if target is None else load_target(target)
    with stages("engines") as begin:
        found = build(
            bundle, request, target=other, plugin=None if plugin is None else plugin.absolute(), progress=begin
        )
    record = found.record
    if as_json:
        print_json({"record": record.model_dump(mode="json"), "built": list(found.built)})
        return
    print_table(f"engines of {bundle} for {record.target}", *engine_rows(record))
    kept = len(record.engines) - len(found.built)
    say(f"{len(found.built)} built, {kept} kept, by {record.backend} {record.tensorrt} for SM {_listed(record.sm)}")


def engine_rows(record: "EngineRecord") -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table of engines: sizes, times and the kinds of layers that matter."""
    from eecompile.engines.records import shown_layers

    columns = ["engine", "MB", "seconds", "peak MB", "layers"]
    return columns, [
        [name, f"{e.bytes / 1e6:.1f}", f"{e.seconds:.1f}", f"{e.peak / 1e6:.0f}", shown_layers(e)]
        for name, e in record.engines.items()
    ]


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values))


COMMANDS = (engines,)
