"""Commands that measure and prove: verify, bench, profile, report."""

import sys
from pathlib import Path

import click

from eecompile import contract as c
from eecompile.cli.console import print_json, print_table, say, stages, user_faults
from eecompile.cli.options import BUNDLE, JSON, KEY, refuse_given
from eecompile.errors import UsageError


@click.command()
@BUNDLE
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Compare with this model in PyTorch, float32.")
@click.option("--prompts", type=click.Path(path_type=Path), help=".txt with a prompt a line, or .jsonl.")
@click.option("--tokens", default=32, show_default=True, help="Tokens to generate for each prompt.")
@JSON
@user_faults
def verify(bundle: Path, checkpoint: Path | None, prompts: Path | None, tokens: int, as_json: bool) -> None:
    """Prove BUNDLE: hashes, parity at every boundary, exact = full token for token, decisions near thresholds."""
    from eecompile.verify import verify_bundle

    with stages("verify") as begin:
        report = verify_bundle(bundle, checkpoint=checkpoint, prompts=prompts, tokens=tokens, progress=begin)
    if as_json:
        print_json(report.to_dict())
    else:
        rows = [["pass" if check.passed else "FAIL", check.name, check.detail] for check in report.checks]
        print_table(f"verify {bundle}", ["", "check", "found"], rows)
    if not report.passed:
        sys.exit(1)


@click.command()
@BUNDLE
@click.option("--prompts", type=click.Path(path_type=Path), help=".txt with a prompt a line, or .jsonl.")
@click.option("--max-new-tokens", default=64, show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Alternating rounds; medians are reported.")
@click.option("--against", default="", help="Peers in the same run: genai,transformers,llama.cpp.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="The peers' model, in Hugging Face form.")
@click.option("--gguf", type=click.Path(path_type=Path), help="llama.cpp's model.")
@click.option("--kv", is_flag=True, help="Also compare the rules for skipped layers.")
@click.option("--batch", type=int, help="Also run so many sequences side by side.")
@click.option("--beside", type=click.Path(path_type=Path), help="Another bundle of the model, in the same rounds.")
@click.option("--threads", type=click.IntRange(1), help="Default: the processors at hand.")
@JSON
@user_faults
def bench(
    bundle: Path, prompts: Path | None, max_new_tokens: int, rounds: int, against: str, checkpoint: Path | None,
    gguf: Path | None, batch: int | None, kv: bool, beside: Path | None, threads: int | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure BUNDLE: speed, quality against full depth, and the work saved, for each mode and for peers."""
    from eecompile.bench.bench import bench_tables, run_bench
    from eecompile.bench.classifier import classifier_tables, run_classifier_bench
    from eecompile.runtime import Bundle

    opened = Bundle.open(bundle, threads=threads)
    if opened.manifest.task != c.CAUSAL_LM:
        refuse_given("max_new_tokens", "against", "checkpoint", "gguf", "batch", "beside")
        with stages("bench") as begin:
            found = run_classifier_bench(opened, prompts, rounds=rounds, progress=begin)
        if as_json:
            print_json(found.model_dump(mode="json"))
            return
        for title, columns, rows in classifier_tables(found):
            print_table(title, columns, rows)
        return
    peers = [name for name in against.split(",") if name]
    with stages("bench") as begin:
        result = run_bench(
            opened, prompts, max_new_tokens=max_new_tokens, rounds=rounds, peers=peers, checkpoint=checkpoint,
            gguf=gguf, batch=batch, kv=kv, beside=None if beside is None else Bundle.open(beside, threads=threads),
            progress=begin,
        )  # fmt: skip
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    for title, columns, rows in bench_tables(result):
        print_table(title, columns, rows)


@click.command()
@BUNDLE
@click.option("--quick", is_flag=True, help="A few seconds, as at the end of a build.")
@click.option("--check-model", is_flag=True, help="Hold the cost model against BUNDLE's profile; change nothing.")
@KEY
@JSON
@user_faults
def profile(bundle: Path, quick: bool, check_model: bool, key: Path | None, as_json: bool) -> None:
    """Measure this machine's segment latencies into BUNDLE and choose which exits pay."""
    from eecompile import pipeline
    from eecompile.bundle.policy import read_for_change

    if check_model:
        _check_model(bundle, as_json)
        return
    if read_for_change(bundle, key).manifest.task != c.CAUSAL_LM:
        mend = "`eecompile bench BUNDLE` measures what its exits save"
        raise UsageError("only bundles that generate text are profiled", where=str(bundle), mend=mend)
    with stages("profile") as begin:
        policy = pipeline.profile_and_choose(bundle, quick=quick, key=key, progress=begin)
    if as_json:
        print_json(policy.model_dump(mode="json"))
        return
    rows = [[e.layer, e.confident or "never", e.draft or "never", e.reason] for e in policy.exits]
    print_table("exits on this machine", ["layer", "confident", "draft", "why"], rows)


def _check_model(bundle: Path, as_json: bool) -> None:
    """The cost model's prediction, from rates measured now, beside the times in the bundle's profile."""
    from eecompile.bench.cost_check import check_costs
    from eecompile.bundle.read import read_bundle

    with stages("profile") as begin:
        begin("rates of this machine")
        found = check_costs(read_bundle(bundle, integrity="size"))
    if as_json:
        print_json(found.to_dict())
        return
    columns = ["graph", "passes", "median error", "one row", "measured", "predicted"]
    rows = [
        [g.graph, g.passes, f"{g.error:.1%}", f"{g.one_row:+.1%}", f"{1e3 * g.measured:.3g} ms",
         f"{1e3 * g.predicted:.3g} ms"]
        for g in found.graphs
    ]  # fmt: skip
    print_table(f"cost model against the profile of {found.device}", columns, rows)
    r = found.rates
    say(f"on {r.basis}: {r.bandwidth / 1e9:.1f} GB/s, {r.flops / 1e9:.0f} Gflop/s, {1e6 * r.kernel:.2g} us a kernel")
    say(
        f"a token at full depth: {1e3 * found.token_measured:.3g} ms measured, {1e3 * found.token_predicted:.3g} ms "
        f"predicted ({found.token_error:+.1%}); median error of all passes {found.error:.1%}"
    )


@click.command()
@BUNDLE
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: report.html in the bundle.")
@click.option("--prompts", type=click.Path(path_type=Path), help=".txt with a prompt a line, or .jsonl.")
@click.option("--max-new-tokens", default=48, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@user_faults
def report(bundle: Path, output: Path | None, prompts: Path | None, max_new_tokens: int, rounds: int) -> None:
    """Measure BUNDLE and write one self-contained HTML page with plots."""
    from eecompile.bench.bench import run_bench
    from eecompile.bench.classifier import run_classifier_bench
    from eecompile.bench.report import write_report
    from eecompile.runtime import Bundle

    opened = Bundle.open(bundle)
    if opened.manifest.task != c.CAUSAL_LM:
        refuse_given("max_new_tokens")
        with stages("report") as begin:
            found = run_classifier_bench(opened, prompts, rounds=rounds, progress=begin)
        say(str(write_report(bundle, None, output, classifier=found)))
        return
    with stages("report") as begin:
        result = run_bench(opened, prompts, max_new_tokens=max_new_tokens, rounds=rounds, progress=begin)
        path = write_report(bundle, result, output)
    say(str(path))


COMMANDS = (verify, bench, profile, report)
