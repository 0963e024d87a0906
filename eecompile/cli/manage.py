"""Commands that look after bundles and the installation: inspect, check, sign, policy, targets, doctor, completion."""

import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import get_completion_class

from eecompile import __version__
from eecompile import contract as c
from eecompile.cli.console import print_json, print_table, say, user_faults
from eecompile.cli.engines import engine_rows
from eecompile.cli.options import BUNDLE, JSON, KEY, changes_from_options
from eecompile.errors import UsageError

if TYPE_CHECKING:
    from eecompile.target import Target

_PACKAGES = {
    "onnxruntime": "the CPU back end", "onnx": "graphs", "tokenizers": "text", "cryptography": "signatures",
    "torch": "extra verify", "transformers": "extra verify", "polygraphy": "extra verify",
    "tensorrt": "engines", "tensorrt-rtx-cu13": "extra rtx", "cuda-bindings": "runs engines",
    "onnxruntime-genai": "a peer for bench", "llama-cpp-python": "a peer for bench",
}  # fmt: skip
_EXITS: dict[str, str] = {rule: f"exits per {granularity}" for granularity, rule in c.GRANULARITIES.items()}
_NEEDED = ("onnxruntime", "onnx", "tokenizers", "cryptography")


@click.command()
@BUNDLE
@JSON
@user_faults
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE holds: model, schedule, sizes, policy, calibrations, hashes."""
    from eecompile.bundle.read import read_bundle
    from eecompile.engines.records import all_records

    files = read_bundle(bundle, integrity="size")
    records = all_records(files.path)
    if as_json:
        documents = {"calibrations": files.calibrations, "profiles": files.profiles}
        overlays = {name: [o.model_dump(mode="json") for o in found] for name, found in documents.items()}
        print_json({
            "manifest": files.manifest.model_dump(mode="json"), "policy": files.policy.model_dump(mode="json"),
            **overlays, "engines": [record.model_dump(mode="json") for record in records],
        })  # fmt: skip
        return
    m = files.manifest
    print_table(str(bundle), ["", ""], [
        ["model", f"{m.model.family}, {m.model.layers} layers, {m.model.parameters / 1e6:.1f}M weights"],
        ["target", f"{m.target}, {m.precision}, context {m.model.context}, pending cap {m.pending_cap}"],
        *([["encoder", f"{m.graphs.encoder.layers} layers over a source"]] if m.graphs.encoder else []),
        *([["task", f"{m.task}, labels {', '.join(m.labels)}"]] if m.labels else []),
        ["size", f"{sum(f.bytes for f in m.files.values()) / 1e6:.1f} MB in {len(m.files)} files"],
        *([["engines", f"{len(m.device.graphs.all())} graphs for {m.device.target}, {m.device.dialect} opset "
            f"{m.device.opset}, computed in {m.device.compute}, caches in {m.device.cache}"]] if m.device else []),
        ["digest", m.digest],
        *([name, value] for name, value in m.provenance.items()),
    ])  # fmt: skip
    print_table("segments", ["segment", "layers", "exit after"], [
        [step.segment, m.graphs.segments[step.segment].layers, "-" if step.exit is None else m.exits[step.exit].layer]
        for step in m.schedule
    ])  # fmt: skip
    rows = [[e.layer, e.confident or "never", e.draft or "never", e.reason] for e in files.policy.exits]
    print_table("exits", ["layer", "confident", "draft", "why"], rows)
    for x in files.calibrations:
        found = "no exit passed" if x.chosen is None else f"{x.path[x.chosen].exit_rate:.1%} of tokens exit"
        how = "" if x.kv == "catch_up" else f", {_EXITS[x.kv] if m.labels else x.kv}"
        say(f"calibrated for {x.precision}{how} by {x.method}: {x.promise}, {x.documents} documents, {found}")
    for record in records:
        print_table(f"engines for {record.target}", *engine_rows(record))
    if m.device is not None and m.device.target not in {record.target for record in records}:
        say(f"engines for {m.device.target}: none yet; build them on the device with `eecompile engines BUNDLE`")


@click.command()
@BUNDLE
@KEY
@JSON
@user_faults
def check(bundle: Path, key: Path | None, as_json: bool) -> None:
    """Check that BUNDLE is intact; with --key, that its owner signed all of it.

    Engines are held against their records; whether they are for this machine, whatever opens them says.
    """
    from eecompile.bundle.read import read_bundle
    from eecompile.engines.records import check_engines
    from eecompile.runtime.device_plan import device_plan

    files = read_bundle(bundle, key=key)
    if files.manifest.device is not None:
        device_plan(files)
        check_engines(files.path)
    if as_json:
        print_json({"intact": True, "digest": files.manifest.digest, "signed": key is not None})
    else:
        say(f"intact{', signed by this key' if key else ''}: {files.manifest.digest}")


@click.command()
@BUNDLE
@click.option("--key", type=click.Path(path_type=Path), required=True, help="Ed25519 private key in PEM form.")
@click.option("--new-key", is_flag=True, help="Make the key first (KEY and KEY.pub).")
@user_faults
def sign(bundle: Path, key: Path, new_key: bool) -> None:
    """Sign BUNDLE's manifest and overlays."""
    from eecompile.bundle import sign as signing

    if new_key:
        signing.new_key(key)
    for name in signing.sign_bundle(bundle, key):
        say(f"signed {name}")


@click.command()
@BUNDLE
@click.argument("action", type=click.Choice(["show", "set"]))
@click.option("--threshold", "threshold", multiple=True, metavar="LAYER[:CRITERION]=V", help="Or LAYER=never. Repeats.")
@click.option("--mode", type=click.Choice(["confident", "draft"]), default="confident", show_default=True)
@click.option("--minimum-depth", type=int, help="Layers that every token runs.")
@click.option("--budget", help="Layer-rows that a request may spend, or none.")
@click.option("--gates", type=click.Path(path_type=Path), help="gates.json of `train policy`; calibrate afterwards.")
@KEY
@JSON
@user_faults
def policy(bundle: Path, action: str, **options: Any) -> None:
    """Show BUNDLE's policy, or set thresholds, minimum depth and budget inside the calibrated range, or tuned gates."""
    from eecompile.bundle.policy import change_policy, permitted_thresholds
    from eecompile.bundle.read import read_bundle
    from eecompile.bundle.tuned import adopt_gates, read_tuned

    changes = [name for name in ("threshold", "minimum_depth", "budget", "gates") if options[name] not in (None, ())]
    if bool(changes) != (action == "set"):
        mend = "policy set --threshold, --minimum-depth, --budget or --gates; policy show takes none of them"
        raise UsageError(f"there is nothing to {action}" if not changes else f"{action} changes nothing", mend=mend)
    if options["gates"] is not None:
        adopt_gates(bundle, read_tuned(options["gates"]), key=options["key"])
    files = read_bundle(bundle, integrity="size")
    if action == "set":
        gates = {info.layer: info.gates for info in files.manifest.exits}
        change_policy(
            bundle, thresholds=changes_from_options(options["threshold"], gates), mode=options["mode"],
            key=options["key"], **_limits(options["minimum_depth"], options["budget"]),
        )  # fmt: skip
        files = read_bundle(bundle, integrity="size")
    if options["as_json"]:
        print_json(files.policy.model_dump(mode="json"))
        return
    permitted = permitted_thresholds(files)
    print_table(f"policy of {bundle}", ["exit", "confident", "permitted", "draft", "why"], [
        [e.layer, e.confident or "never", permitted[i] or "none", e.draft or "never", e.reason]
        for i, e in enumerate(files.policy.exits)
    ])  # fmt: skip
    say(f"minimum depth {files.policy.minimum_depth}, budget {files.policy.budget or 'none'}")


def _limits(minimum_depth: int | None, budget: str | None) -> dict[str, int | None]:
    limits: dict[str, int | None] = {}
    if minimum_depth is not None:
        limits["minimum_depth"] = minimum_depth
    if budget is not None:
        if budget != "none" and not budget.isdigit():
            raise UsageError(f"--budget {budget!r} is neither a number nor none")
        limits["budget"] = None if budget == "none" else int(budget)
    return limits


@click.command()
@click.argument("names", metavar="[TARGET]...", nargs=-1)
@JSON
@user_faults
def targets(names: tuple[str, ...], as_json: bool) -> None:
    """List the devices that eecompile can build for, or describe each TARGET, a name or a .toml file of one's own."""
    from eecompile.target import load_target, target_names

    found = [load_target(name) for name in names or target_names()]
    if as_json:
        print_json({t.name: t.model_dump(mode="json") for t in found})
        return
    if names:
        for target in found:
            print_table(target.name, ["", ""], [
                [name, "\n".join(map(str, value)) if isinstance(value, list) else value]
                for name, value in target.model_dump(mode="json", exclude={"name"}).items()
            ])  # fmt: skip
        return
    columns = ["name", "back end", "SM", "memory", "bandwidth", "fp16", "precisions", "engines"]
    print_table("targets", columns, [_target_row(t) for t in found])
    say("`eecompile targets NAME` says all of one; a .toml file of your own goes wherever a name does")


def _target_row(target: "Target") -> list[object]:
    """A target in one line; what its file leaves open is not shown."""
    first = [target.precision, *(p for p in target.precisions if p != target.precision)]
    version = f" {target.tensorrt}+" if target.tensorrt else ""
    rate = target.flops.get("fp16", 0)
    return [
        target.name,
        f"{target.backend}{version}",
        ", ".join(map(str, target.sm)),
        f"{target.memory / 1e9:.0f} GB" if target.memory else "",
        f"{target.bandwidth / 1e9:.0f} GB/s" if target.bandwidth else "",
        f"{rate / 1e12:.0f} Tflop/s" if rate else "",
        ", ".join(first),
        {"anywhere": "none", "device": "on the device", "here": "anywhere"}[target.built],
    ]


@click.command()
@JSON
@user_faults
def doctor(as_json: bool) -> None:
    """Say what this machine has and what is missing; exit status 3 if something needed is."""
    versions = {name: _version(name) for name in _PACKAGES}
    clash = _version("onnxruntime") and _version("onnxruntime-gpu")
    gpu = _gpu()
    found = {
        "eecompile": __version__, "python": platform.python_version(), "machine": platform.machine(),
        "gpu": gpu, "packages": versions,
        "clash": "onnxruntime and onnxruntime-gpu are both installed" if clash else None,
    }  # fmt: skip
    if as_json:
        print_json(found)
    else:
        rows = [[name, version or "not installed", _PACKAGES[name]] for name, version in versions.items()]
        rows.append(["GPU", gpu or "none", "engines"])
        print_table(f"eecompile {__version__} on {platform.machine()}", ["package", "version", "for"], rows)
        if clash:
            say("onnxruntime and onnxruntime-gpu are both installed and break each other: uninstall one")
    if clash or any(versions[name] is None for name in _NEEDED):
        sys.exit(3)


def _gpu() -> str | None:
    from eecompile.engines.machine import read_gpu
    from eecompile.errors import MissingBackend

    try:
        gpu = read_gpu()
    except MissingBackend:
        return None
    return f"{gpu.name}, SM {gpu.sm}, CUDA {gpu.cuda}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@user_faults
def completion(shell: str) -> None:
    """Print a completion script: eval "$(eecompile completion bash)"."""
    from eecompile.cli import main

    cls = get_completion_class(shell)
    assert cls is not None
    click.echo(cls(main, {}, "eecompile", "_EECOMPILE_COMPLETE").source())


COMMANDS = (inspect, check, sign, policy, targets, doctor, completion)
