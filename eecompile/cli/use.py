"""The command that runs a bundle."""

import time
from pathlib import Path
from typing import Any

import click

from eecompile import contract as c
from eecompile.cli.classify import CLASSIFYING, run_classifier
from eecompile.cli.console import err, print_json, user_faults
from eecompile.cli.many import result_json, run_file
from eecompile.cli.options import (
    BACKEND,
    BUNDLE,
    DECISION,
    JSON,
    KEY,
    MODE,
    PLUGIN,
    ids_from_text,
    refuse_given,
    thresholds_from_options,
)
from eecompile.errors import UsageError

SAMPLING = ("temperature", "top_k", "top_p", "seed", "sled", "sled_rate")


@click.command()
@BUNDLE
@click.argument("prompt", required=False)
@click.option("--prompt-ids", help="Token ids, as 1,2,3, in place of a text.")
@MODE
@click.option("--max-new-tokens", type=int, help="Default: as many as the context holds.")
@click.option("--kv", type=click.Choice(c.KV_RULES), help="Rule for skipped layers. Default: the policy's.")
@click.option("--temperature", default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", default=0, show_default=True, help="0 keeps every token.")
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--sled", is_flag=True, help="Let the exits correct the last layer's logits; mode full only.")
@click.option("--sled-rate", default=2.0, show_default=True, help="How far they may move them.")
@click.option("--threshold", "threshold", multiple=True, metavar="LAYER[:CRITERION]=V", help="Or LAYER=never. Repeats.")
@click.option("--pending-cap", type=int, help="Tokens that may wait for deep layers.")
@click.option("--minimum-depth", type=int, help="Layers that every token runs.")
@click.option("--budget", type=int, help="Layer-rows that the request may spend.")
@click.option("--raw", is_flag=True, help="Continue the text as it is, without the chat template.")
@click.option("--input", "input_", type=click.Path(path_type=Path), help="Prompts: .jsonl or .txt, one a line.")
@click.option("--output", type=click.Path(path_type=Path), help="With --input: a line of JSON for each prompt.")
@click.option(
    "--batch", type=int, help="With --input: what runs side by side. Default: 8, or what the bundle takes; 32 texts."
)
@click.option("--stream", is_flag=True, help="Print text as it is generated.")
@click.option("--pair", help="The second text, where a classifier takes two.")
@click.option("--granularity", type=click.Choice(list(c.GRANULARITIES)), help="What leaves a classifier's batch.")
@click.option("--truncate", is_flag=True, help="Cut off texts that are too long for a classifier.")
@click.option("--threads", type=click.IntRange(1), help="Default: the processors at hand.")
@BACKEND
@PLUGIN
@DECISION
@KEY
@JSON
@user_faults
def run(bundle: Path, prompt: str | None, **options: Any) -> None:
    """Generate from BUNDLE, or classify with it. Modes: full, confident (calibrated, lossy), exact (the full model's
    output, sooner; not for classifiers)."""
    from eecompile.runtime import Bundle, Sampling

    opened = Bundle.open(
        bundle, **{name: options[name] for name in ("threads", "key", "backend", "plugin", "decision")}
    )
    if opened.manifest.task != c.CAUSAL_LM:
        run_classifier(opened, prompt, options)
        return
    refuse_given(*CLASSIFYING, kind="generates text")
    given = [value for value in (prompt, options["prompt_ids"], options["input_"]) if value is not None]
    if len(given) != 1:
        raise UsageError("give either a PROMPT or --prompt-ids, or a file of prompts with --input")
    if (options["input_"] is None) != (options["output"] is None):
        raise UsageError("--input and --output go together")
    mode = options["mode"]
    _check_together(options)
    overrides = thresholds_from_options(options["threshold"], opened.manifest, opened.files.policy.exits, mode)
    settings = {name: options[name] for name in ("mode", "pending_cap", "minimum_depth", "budget", "kv")}
    settings["thresholds"] = overrides
    how = Sampling(**{name: options[name] for name in SAMPLING})
    limit = options["max_new_tokens"]
    if options["input_"] is not None:
        batch = opened.batch(slots=options["batch"], **settings)
        run_file(
            opened, batch, options["input_"], options["output"], max_new_tokens=limit, sampling=how,
            raw=options["raw"], mode=mode,
        )  # fmt: skip
        return
    session = opened.session(**settings)
    if options["prompt_ids"] is not None:
        ids = ids_from_text(options["prompt_ids"], "--prompt-ids")
        generation = session.generate(ids, max_new_tokens=limit, sampling=how)
    elif opened.text is not None and opened.text.chat_template and not options["raw"]:
        message = {"role": "user", "content": prompt or ""}
        generation = session.chat([message], max_new_tokens=limit, sampling=how)
    else:
        generation = session.generate(prompt or "", max_new_tokens=limit, sampling=how)
    _print(generation, mode, has_text=opened.text is not None, stream=options["stream"], as_json=options["as_json"])


def _check_together(options: dict[str, Any]) -> None:
    """Raise UsageError for an option that the others leave without a meaning."""
    if options["mode"] == "full" and options["threshold"]:
        raise UsageError("--threshold is for exits, and mode full asks none", mend="use --mode exact or confident")
    if options["input_"] is None and options["batch"] is not None:
        raise UsageError("--batch goes with --input", mend="one prompt runs by itself")
    if options["input_"] is not None and (options["as_json"] or options["stream"]):
        raise UsageError("--json and --stream are for one prompt", mend="--output has a line of JSON for each")
    if options["as_json"] and options["stream"]:
        raise UsageError("--json prints one object, once it is whole", mend="leave --stream out")


def _print(generation: Any, mode: str, *, has_text: bool, stream: bool, as_json: bool) -> None:
    began, pieces, depths = time.perf_counter(), [], []
    for token in generation:
        piece = token.text if has_text else f"{token.id} "
        pieces.append(piece)
        depths.append(token.exit_layer)
        if stream:
            click.echo(piece, nl=False)
    stats, text = generation.stats, "".join(pieces)
    if as_json:
        found = text if has_text else None
        print_json(result_json(generation.prompt_ids, generation.ids, found, depths, mode, stats))
        return
    click.echo("" if stream else text)
    depth = f"mean depth {stats.mean_depth:.1f}" + (f", {stats.drafted} drafted" if stats.drafted else "")
    speed = f"{stats.tokens_per_second:.1f} tokens/s" if stats.tokens > 1 else f"{time.perf_counter() - began:.2f} s"
    err.print(f"{stats.tokens} tokens, {speed}, {depth}, {stats.rejected} rejected, stopped by {stats.stop_reason}")


COMMANDS = (run,)
