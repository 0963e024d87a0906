"""From the passes and seconds of many runs to the figures of one mode."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from eecompile import contract as c
from eecompile.bench.agreement import confident_rules, draft_rules
from eecompile.bench.results import GraphTime, ModeResult
from eecompile.bench.runs import Run
from eecompile.bundle.manifest import Manifest
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.heads import head_graph
from eecompile.runtime.source import first_tokens

RUNTIME = "runtime"  # beside graph names: time outside the engines
Runs = list[list[Run]]  # [round][prompt]


@dataclass(frozen=True)
class Speed:
    """Decoding speed over all prompts: of the round with the median time, `middle`; every round's seconds."""

    tokens_per_second: float
    seconds: list[float]
    middle: int


def speed(runs: Runs) -> Speed:
    """How fast these rounds decoded. The first token of each prompt is prefill's and does not count."""
    seconds = [sum(run.seconds for run in round_) for round_ in runs]
    middle = sorted(range(len(runs)), key=seconds.__getitem__)[(len(runs) - 1) // 2]
    tokens = decoded(runs[middle])
    return Speed(tokens / seconds[middle] if seconds[middle] else 0.0, seconds, middle)


def decoded(round_: Sequence[Run]) -> int:
    """Tokens after the first of each prompt."""
    return sum(len(run.ids) - 1 for run in round_)


def equal_tokens(round_: Sequence[Run], full: Sequence[Run]) -> tuple[int, int]:
    """(tokens that stand where full mode put the same one, full mode's tokens), without each prompt's first."""
    pairs = zip(round_, full, strict=True)
    equal = sum(a == b for run, wanted in pairs for a, b in zip(run.ids[1:], wanted.ids[1:], strict=False))
    return equal, decoded(full)


def graph_times(modes: Mapping[str, Runs]) -> list[GraphTime]:
    """Median seconds of a lone token's pass: segments and head as full mode ran them, exits as any mode asked them."""
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    for mode, runs in modes.items():
        for run in (run for round_ in runs for run in round_):
            for record in run.passes:
                if mode == "full" or record.graph.startswith(("exit_", "head_")):
                    times[record.graph, record.rows].append(record.seconds)
    return [GraphTime(graph=g, rows=r, seconds=median(t), passes=len(t)) for (g, r), t in sorted(times.items())]


def mode_result(
    bundle: Bundle, mode: str, runs: Runs, full: Runs, times: Sequence[GraphTime],
    agreed: Mapping[str, tuple[int, int]],
) -> ModeResult:  # fmt: skip
    """The figures of one mode; `full` are full mode's runs in the same rounds."""
    measured, manifest = speed(runs), bundle.manifest
    round_ = runs[measured.middle]
    tokens, stats = max(1, decoded(round_)), [run.stats for run in round_]
    depths = Counter(depth for run in round_ for depth in run.depths[1:])
    equal, compared = equal_tokens(round_, full[0])
    right, asked = agreed.get(mode, (equal, compared))
    rows = sum(s.layer_rows - first_tokens(manifest, s.prompt_tokens) * manifest.model.layers for s in stats)
    where = _token_time(round_, tokens)
    return ModeResult(
        tokens_per_second=measured.tokens_per_second,
        round_seconds=measured.seconds,
        agreement=right / max(1, asked),
        equal_tokens=equal,
        tokens=compared,
        mean_depth=sum(depth * n for depth, n in depths.items()) / tokens,
        ideal_speedup=_ideal_speedup(manifest, round_, times),
        speedup=measured.tokens_per_second / speed(full).tokens_per_second,
        layer_rows=rows / tokens,
        drafted=sum(s.drafted for s in stats),
        rejected=sum(s.rejected for s in stats),
        overhead=min(1.0, where[RUNTIME] / sum(where.values())),
        time=where,
        exit_layers=dict(sorted(depths.items())),
        note=_note(bundle, mode),
    )


def _token_time(round_: Sequence[Run], tokens: int) -> dict[str, float]:
    """Mean seconds per token by graph; "runtime" is the rest of the wall time."""
    where: dict[str, float] = defaultdict(float)
    for record in (record for run in round_ for record in run.passes):
        where[record.graph] += record.seconds / tokens
    wall = sum(run.seconds for run in round_) / tokens
    return {**dict(sorted(where.items())), RUNTIME: max(0.0, wall - sum(where.values()))}


def _ideal_speedup(manifest: Manifest, round_: Sequence[Run], times: Sequence[GraphTime]) -> float:
    """Full depth's time over that of the one-row passes on each emitted token's own way down.

    Exits asked and heads that then declined count as often as they occurred per step (exact mode takes more steps than
    it emits tokens, since wrong drafts are rolled back).
    """
    price = {time.graph: time.seconds for time in reversed(times)}  # of the pass of fewest rows
    way, depth, until = price["embed"], 0, {}
    for step in manifest.schedule:
        depth += manifest.caches[step.cache]
        way += price[f"segment_{step.segment}"]
        head = c.FULL_HEAD if step.exit is None else manifest.exits[step.exit].head
        until[depth] = way + price.get(head_graph(head), 0.0)  # a head that never ran has emitted nothing
    tokens = sum(until[run_depth] for run in round_ for run_depth in run.depths[1:])
    passes = [record.graph for run in round_ for record in run.passes]
    asked = sum(price[graph] for graph in passes if graph.startswith("exit_"))
    declined = sum(price[graph] * n for run in round_ for graph, n in run.stats.declined.items())
    count = decoded(round_)
    return (way + price["head"]) * count / (tokens + (asked + declined) * count / max(1, passes.count("embed")))


def _note(bundle: Bundle, mode: str) -> str:
    if mode == "full":
        return "" if bundle.manifest.exits else "the bundle has no exits"
    rules = confident_rules(bundle) if mode == "confident" else draft_rules(bundle)
    return "" if any(rules) else "no exit is open in the policy: this is full depth"
