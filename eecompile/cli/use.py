"""The command that runs a bundle."""

import time
from pathlib import Path
from typing import Any

import click

from eecompile import contract as c
from eecompile.cli.classify import CLASSIFYING, run_classifier
from eecompile.cli.console import err, print_json, user_faults
from eecompile.cli.options import BUNDLE, JSON, KEY, MODE, ids_from_text, refuse_given, thresholds_from_options
from eecompile.errors import UsageError


@click.command()
@BUNDLE
@click.argument("prompt", required=False)
@click.option("--prompt-ids", help="Token ids, as 1,2,3, in place of a text.")
@MODE
@click.option("--max-new-tokens", type=int, help="Default: as many as the context holds.")
@click.option("--kv", type=click.Choice(c.KV_RULES), default=c.KV_RULES[0], show_default=True)
@click.option("--temperature", default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", default=0, show_default=True, help="0 keeps every token.")
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--threshold", "threshold", multiple=True, metavar="LAYER[:CRITERION]=V", help="Or LAYER=never. Repeats.")
@click.option("--pending-cap", type=int, help="Tokens that may wait for deep layers.")
@click.option("--minimum-depth", type=int, help="Layers that every token runs.")
@click.option("--budget", type=int, help="Layer-rows that the request may spend.")
@click.option("--raw", is_flag=True, help="Continue the text as it is, without the chat template.")
@click.option("--stream", is_flag=True, help="Print text as it is generated.")
@click.option("--input", type=click.Path(path_type=Path), help="A classifier's texts: .jsonl, one a line.")
@click.option("--output", type=click.Path(path_type=Path), help="Where --input's answers go. Default: stdout.")
@click.option("--pair", help="The second text, where a classifier takes two.")
@click.option("--granularity", type=click.Choice(list(c.GRANULARITIES)), help="What leaves a classifier's batch.")
@click.option("--batch", default=32, show_default=True, help="Texts that a classifier runs together.")
@click.option("--truncate", is_flag=True, help="Cut off texts that are too long for a classifier.")
@click.option("--threads", type=int, help="Default: the processors at hand.")
@KEY
@JSON
@user_faults
def run(bundle: Path, prompt: str | None, **options: Any) -> None:
    """Generate from BUNDLE, or classify with it. Modes: full, confident (calibrated, lossy), exact (the full model's
    output, sooner; not for classifiers)."""
    from eecompile.runtime import Bundle, Sampling

    opened = Bundle.open(bundle, threads=options["threads"], key=options["key"])
    if opened.manifest.task != c.CAUSAL_LM:
        run_classifier(opened, prompt, options)
        return
    refuse_given(*CLASSIFYING, kind="generates text")
    if (prompt is None) == (options["prompt_ids"] is None):
        raise UsageError("give either a PROMPT or --prompt-ids")
    mode = options["mode"]
    overrides = thresholds_from_options(options["threshold"], opened.manifest, opened.files.policy.exits, mode)
    session = opened.session(
        mode=mode, pending_cap=options["pending_cap"], minimum_depth=options["minimum_depth"],
        budget=options["budget"], thresholds=overrides,
    )  # fmt: skip
    how = Sampling(options["temperature"], options["top_k"], options["top_p"], options["seed"])
    limit = options["max_new_tokens"]
    if options["prompt_ids"] is not None:
        ids = ids_from_text(options["prompt_ids"], "--prompt-ids")
        generation = session.generate(ids, max_new_tokens=limit, sampling=how)
    elif opened.text is not None and opened.text.chat_template and not options["raw"]:
        message = {"role": "user", "content": prompt or ""}
        generation = session.chat([message], max_new_tokens=limit, sampling=how)
    else:
        generation = session.generate(prompt or "", max_new_tokens=limit, sampling=how)
    _print(generation, mode, has_text=opened.text is not None, stream=options["stream"], as_json=options["as_json"])


def _print(generation: Any, mode: str, *, has_text: bool, stream: bool, as_json: bool) -> None:
    began, pieces, depths = time.perf_counter(), [], []
    for token in generation:
        piece = token.text if has_text else f"{token.id} "
        pieces.append(piece)
        depths.append(token.exit_layer)
        if stream and not as_json:
            click.echo(piece, nl=False)
    stats, text = generation.stats, "".join(pieces)
    if as_json:
        print_json({
            "prompt_ids": generation.prompt_ids, "token_ids": generation.ids, "text": text if has_text else None,
            "exit_layers": depths, "mode": mode, "stop_reason": stats.stop_reason,
            "stats": {
                "tokens_per_second": stats.tokens_per_second, "prefill_seconds": stats.prefill_seconds,
                "mean_depth": stats.mean_depth, "drafted": stats.drafted, "rejected": stats.rejected,
                "segment_passes": stats.segment_passes, "layer_rows": stats.layer_rows,
            },
        })  # fmt: skip
        return
    click.echo("" if stream else text)
    depth = f"mean depth {stats.mean_depth:.1f}" + (f", {stats.drafted} drafted" if stats.drafted else "")
    speed = f"{stats.tokens_per_second:.1f} tokens/s" if stats.tokens > 1 else f"{time.perf_counter() - began:.2f} s"
    err.print(f"{stats.tokens} tokens, {speed}, {depth}, {stats.rejected} rejected, stopped by {stats.stop_reason}")


COMMANDS = (run,)
