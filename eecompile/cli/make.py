"""Commands that make things: build, exits, calibrate."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from eecompile import contract as c
from eecompile.cli.console import err, print_json, print_table, stages, user_faults
from eecompile.cli.options import BUNDLE, JSON, KEY, ids_from_text, names_from_text, refuse_given
from eecompile.errors import UsageError


@click.command()
@click.argument("ckpt", type=click.Path(path_type=Path))
@click.option("--target", default="cpu", show_default=True, help="A name from `eecompile targets`, or a .toml file.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The bundle's directory.")
@click.option("--exits", default="", help="Layers to exit after, as 6,12,18, in place of early_exit.json's.")
@click.option("--precision", type=click.Choice(c.PRECISIONS), help="Default: the target's.")
@click.option("--context", type=int, help="Tokens of K/V cache. Default: the model's, at most 2048.")
@click.option("--pending-cap", type=int, help=f"Tokens that may wait for deep layers. Default: {c.PENDING_CAP}.")
@click.option("--cache", type=click.Choice(c.CACHES), help="Keys and values. Default: fp32; fp16 in engines.")
@click.option("--compute", type=click.Choice(c.COMPUTE), help="In engines. Default: float16, or float32 with fp32.")
@click.option(
    "--kv", default="catch_up", show_default=True, help=f"Rules for skipped layers, of {','.join(c.KV_RULES)}."
)
@click.option("--batch", default=1, show_default=True, help="Sequences that may run side by side.")
@click.option("--minimum-rows", default=1, show_default=True, help="Pad passes, if `verify` finds rows that differ.")
@click.option("--texts", type=click.Path(path_type=Path), help="What fp8 and w8a8 are scaled by: text, as for `exits`.")
@click.option("--dry-run", is_flag=True, help="Check everything and say what would be built.")
@click.option("--no-tokenizer", is_flag=True, help="Import a GGUF file without its tokenizer.")
@click.option("--no-runtime", is_flag=True, help="Leave the C++ runtime's sources (0.7 MB) out of the bundle.")
@click.option("--no-profile", is_flag=True, help="Do not measure this machine; exits stay as the student has them.")
@JSON
@user_faults
def build(
    ckpt: Path, target: str, output: Path, exits: str, precision: str | None, context: int | None,
    pending_cap: int | None, batch: int, minimum_rows: int, dry_run: bool, no_tokenizer: bool, no_profile: bool,
    no_runtime: bool, kv: str, cache: str | None, compute: str | None, texts: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Build a bundle from CKPT: a Hugging Face directory, a student made by `exits`, or a llama GGUF file."""
    from eecompile import pipeline
    from eecompile.bundle.write import check_replaceable
    from eecompile.student.encoder_student import EncoderStudent, open_checkpoint
    from eecompile.target import load_target

    rules = tuple(kv.split(","))
    sizes = (context, pending_cap, minimum_rows, batch)
    options = pipeline.BuildOptions(precision, *sizes, rules, cache, compute, runtime=not no_runtime)
    with checkpoint_directory(ckpt, tokenizer=not no_tokenizer) as directory:
        student = open_checkpoint(directory, ids_from_text(exits, "--exits"))
        device = load_target(target)
        plan = pipeline.plan(student, device, options)
        if dry_run:
            check_replaceable(output)
            _show_plan(student, device, plan, as_json)
            return
        options = _with_samples(options, student, plan["precision"], texts)
        with stages("build", pipeline.stage_count(student, device, plan["precision"])) as begin:
            manifest = pipeline.build(student, device, output, options, progress=begin)
    if not no_profile and not isinstance(student, EncoderStudent):
        with stages("profile") as begin:
            if device.backend == "onnxruntime":
                pipeline.profile_and_choose(output, progress=begin)
            else:
                pipeline.choose_for_device(output, device)
    if manifest.device is not None:
        _warn_of_memory(student, device, plan)
        plan["engines"] = _engines_here(output)
    size = sum(info.bytes for info in manifest.files.values())
    _show({"bundle": str(output), "target": device.name, **plan, "bytes": size, "digest": manifest.digest}, as_json)


@click.command()
@click.argument("ckpt", type=click.Path(path_type=Path))
@click.option("--at", required=True, help="Layers to exit after, as 18,22,26.")
@click.option("--fit", type=click.Path(path_type=Path), required=True, help="Text: .jsonl, .txt or a directory.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The student's directory.")
@click.option("--risk", default=0.05, show_default=True, help="Disagreement with the full model that is allowed.")
@click.option("--error", default=0.05, show_default=True, help="Chance of the guarantee failing.")
@click.option("--limit", type=int, help="Use at most this many documents, chosen by hash.")
@click.option("--granularity", type=click.Choice(list(c.GRANULARITIES)), help="What leaves a classifier's batch.")
@click.option("--gates", default="learned,max_prob", show_default=True, help=f"All fire: {', '.join(c.CRITERIA)}.")
@click.option("--head", type=click.Choice(c.HEADS), default="full", show_default=True, help="What exits answer with.")
@click.option("--rank", default=c.LOW_RANK, show_default=True, help="Of a low-rank head; int8 and int4 take k x 32.")
@click.option("--shortlist", default=c.SHORTLIST, show_default=True, help="Tokens of a shortlist head.")
@click.option("--schedule", type=click.Choice(c.SCHEDULES), default="none", show_default=True, help="Moves thresholds.")
@JSON
@user_faults
def exits(
    ckpt: Path, at: str, fit: Path, output: Path, risk: float, error: float, limit: int | None,
    granularity: str | None, gates: str, head: str, rank: int, shortlist: int, schedule: str, as_json: bool,
) -> None:  # fmt: skip
    """Fit exits on CKPT in closed form and calibrate them: a student that early-exits, its backbone untouched."""
    from eecompile import pipeline
    from eecompile.calibrate.classifier_exits import fit_classifier_exits
    from eecompile.calibrate.exits import fit_exits
    from eecompile.calibrate.plan import ExitPlan
    from eecompile.student.encoder_student import is_encoder

    plan = ExitPlan.of(names_from_text(gates), head, rank, shortlist, schedule)
    with checkpoint_directory(ckpt) as directory, stages("exits") as begin:
        common: dict[str, Any] = {"risk": risk, "error": error, "limit": limit, "progress": begin}
        layers, build_bundle = ids_from_text(at, "--at"), pipeline.build_plain
        if is_encoder(directory):
            refuse_given("gates", "head", "rank", "shortlist", "schedule")
            summary = fit_classifier_exits(
                directory, layers, fit, output, granularity=granularity, build_bundle=build_bundle, **common
            )
        else:
            refuse_given("granularity", kind="generates text")
            summary = fit_exits(directory, layers, fit, output, plan=plan, build_bundle=build_bundle, **common)
    _show(summary, as_json)


@click.command()
@click.argument("ckpt", type=click.Path(path_type=Path))
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The merged checkpoint.")
@JSON
@user_faults
def merge(ckpt: Path, adapter: Path, output: Path, as_json: bool) -> None:
    """Merge ADAPTER, a LoRA directory as peft saves it, into CKPT; exits that lie beside it come along."""
    from eecompile.bundle.disk import disk_faults
    from eecompile.student.lora import merge_lora

    with checkpoint_directory(ckpt) as directory, stages("merge") as begin, disk_faults(output):
        merged = merge_lora(directory, adapter, output, progress=begin)
    _show({"checkpoint": str(output), "merged": len(merged)}, as_json)


@click.command()
@BUNDLE
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Text: .jsonl, .txt or a directory.")
@click.option("--risk", default=0.05, show_default=True, help="Disagreement with the full model that is allowed.")
@click.option("--error", default=0.05, show_default=True, help="Chance of the guarantee failing (ltt).")
@click.option(
    "--method", type=click.Choice(["ltt", "crc"]), default="ltt", show_default=True, help="crc: in expectation."
)
@click.option("--limit", type=int, help="Use at most this many documents, chosen by hash.")
@click.option("--kv", type=click.Choice(c.KV_RULES), help="For which rule. Default: catch_up.")
@click.option("--granularity", type=click.Choice(list(c.GRANULARITIES)), help="What leaves a classifier's batch.")
@click.option(
    "--tolerance", type=float, help="How far a regression's value may be off. Default: a tenth of its spread."
)
@KEY
@JSON
@user_faults
def calibrate(
    bundle: Path, data: Path, risk: float, error: float, method: str, limit: int | None, kv: str | None,
    granularity: str | None, tolerance: float | None, key: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Calibrate BUNDLE's exits, in its own precision, over documents.

    By Learn-then-Test (ltt: the risk holds with 1 - error confidence) or conformal risk control (crc: in expectation).
    """
    from eecompile.bench.defaults import apply_default_policy
    from eecompile.bench.device_costs import is_elsewhere
    from eecompile.bundle.policy import read_for_change
    from eecompile.calibrate.calibrate import apply_calibration, calibrate_file
    from eecompile.calibrate.classifier import calibrate_classifier
    from eecompile.runtime import Bundle

    read_for_change(bundle, key)
    opened = Bundle.open(bundle)
    if method == "crc":
        refuse_given("error", kind="is calibrated in expectation")
    common: dict[str, Any] = {"risk": risk, "error": error, "method": method, "limit": limit}
    with stages("calibrate") as begin:
        if opened.manifest.task == c.CAUSAL_LM:
            refuse_given("granularity", "tolerance", kind="generates text")
            result = calibrate_file(opened, data, kv=kv or "catch_up", progress=begin, **common)
        else:
            refuse_given("kv", kind="classifies")
            result = calibrate_classifier(
                opened, data, granularity=granularity, tolerance=tolerance, progress=begin, **common
            )
    apply_calibration(bundle, result, key=key)
    generates = opened.manifest.task == c.CAUSAL_LM
    if opened.files.profiles or (generates and is_elsewhere(opened.manifest.target)):
        apply_default_policy(bundle, key=key)
    chosen = None if result.chosen is None else result.path[result.chosen].model_dump(mode="json")
    found = {"documents": result.documents, "tokens": result.tokens, "risk": risk, "guarantee": result.promise}
    _show({**found, "chosen": chosen}, as_json)


@contextmanager
def checkpoint_directory(path: Path, *, tokenizer: bool = True) -> Iterator[Path]:
    """The checkpoint as a Hugging Face directory; a GGUF file is converted into a temporary one."""
    if not path.exists():
        raise UsageError("there is no such checkpoint", where=str(path), mend="give a directory or a .gguf file")
    if path.is_dir():
        yield path
        return
    from eecompile.student.gguf_import import checkpoint_from_gguf

    folder = Path(tempfile.mkdtemp(prefix="eecompile-gguf-"))
    try:
        err.print(f"converting {path.name}")
        checkpoint_from_gguf(path, folder / path.stem, tokenizer=tokenizer)
        yield folder / path.stem
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _with_samples(options: Any, student: Any, precision: str, texts: Path | None) -> Any:
    """The build's options with the texts that its precision is scaled by."""
    from eecompile.pipeline_scales import read_samples

    if texts is None:
        return options
    if precision not in c.SCALED:
        scaled = ", ".join(c.SCALED)
        raise UsageError(f"--texts is for {scaled}, and this build is {precision}", mend="leave the option out")
    return replace(options, samples=read_samples(student, texts))


def _engines_here(bundle: Path) -> list[str]:
    """Build a bundle's engines where this machine is their device; the names of those that it has then."""
    from eecompile.pipeline_engines import engines_here

    with stages("engines") as begin:
        found = engines_here(bundle, progress=begin)
    if isinstance(found, str):
        err.print(escape(found))
        return []
    return list(found.record.engines)


def _warn_of_memory(student: Any, device: Any, plan: dict[str, Any]) -> None:
    """Say on stderr where the device's memory is too small; another build of the bundle may run there all the same."""
    from eecompile.bench.forecast import predict_build

    memory = predict_build(student, device, plan).memory
    if memory.fits is False:
        need, has = memory.total / 1e6, memory.limit / 1e6
        err.print(
            f"warning: it needs {need:.1f} MB of {device.name}'s {has:.1f} MB: build with less --context or --batch"
        )


def _show_plan(student: Any, device: Any, plan: dict[str, Any], as_json: bool) -> None:
    """The plan, and what it would come to. Nothing is predicted of encoders, whose passes have any shape."""
    from eecompile.bench.forecast import predict_build
    from eecompile.cli.dry_run import print_prediction
    from eecompile.student.encoder_student import EncoderStudent

    values = {"target": device.name, **plan, "layers": student.spec.layers, "family": student.spec.family}
    with stages("predict") as begin:
        begin(f"rates of {device.name}")
        prediction = None if isinstance(student, EncoderStudent) else predict_build(student, device, plan)
    if as_json:
        print_json({**values, "predicted": prediction and prediction.to_dict()})
        return
    _show(values, as_json)
    if prediction is not None:
        print_prediction(prediction)


def _show(values: dict[str, object], as_json: bool) -> None:
    if as_json:
        print_json(values)
    else:
        print_table("", ["", ""], [[name, value] for name, value in values.items()])


COMMANDS = (build, exits, calibrate, merge)
