"""`bench --batch`: sequences side by side against the same sequences one after another, in the same rounds."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

from eecompile.bench.results import BatchModeResult, BatchResult
from eecompile.bench.runs import Ids, ModeContender
from eecompile.bench.timing import PassLog, PassRecord, timed_bundle
from eecompile.bundle.manifest import Manifest
from eecompile.errors import UsageError
from eecompile.runtime.bundle import Bundle

Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Run:
    """All sequences continued, without their first tokens: ids and depths of each, seconds, and engine passes."""

    ids: list[Ids]
    depths: list[int]
    seconds: float
    passes: list[PassRecord]
    own_rows: int

    @property
    def tokens(self) -> int:
        return len(self.depths)


class _Together:
    """A batch of the bundle in one mode."""

    def __init__(self, bundle: Bundle, mode: str, slots: int) -> None:
        self._log = PassLog()
        self._bundle, self._mode, self._slots = timed_bundle(bundle, self._log), mode, slots

    def run(self, prompts: Sequence[Ids], tokens: int) -> _Run:
        batch = self._bundle.batch(slots=self._slots, mode=self._mode)
        requests = [batch.add(prompt, max_new_tokens=tokens, stop=()) for prompt in prompts]
        while batch.busy and not all(request.ids for request in requests):
            batch.step()
        first = [len(request.ids) for request in requests]
        before = sum(request.stats.layer_rows for request in requests)
        self._log.take()
        began = perf_counter()
        while batch.busy:
            batch.step()
        seconds = perf_counter() - began
        depths = [depth for request, n in zip(requests, first, strict=True) for depth in request.exit_layers[n:]]
        rows = sum(request.stats.layer_rows for request in requests) - before
        return _Run([request.ids for request in requests], depths, seconds, self._log.take(), rows)


class _Alone:
    """The same in one session, one sequence after another."""

    def __init__(self, bundle: Bundle, mode: str) -> None:
        self._contender = ModeContender(bundle, mode)

    def run(self, prompts: Sequence[Ids], tokens: int) -> _Run:
        runs = [self._contender.run(prompt, tokens) for prompt in prompts]
        return _Run(
            [run.ids for run in runs], [depth for run in runs for depth in run.depths[1:]],
            sum(run.seconds for run in runs), [record for run in runs for record in run.passes], 0,
        )  # fmt: skip


def bench_batch(
    bundle: Bundle, prompts: Sequence[Ids], modes: Sequence[str], *, slots: int, max_new_tokens: int, rounds: int,
    progress: Progress = lambda stage: None,
) -> BatchResult:  # fmt: skip
    """Continue `slots` sequences (the prompts, again and again) together and alone, in each of `modes`.

    max_new_tokens: of each, at least 2. Raises UsageError where the bundle takes no batch of that size.
    """
    if slots < 2:
        raise UsageError(f"a batch of {slots} is no batch", mend="--batch 2 or more")
    chosen = [prompts[i % len(prompts)] for i in range(slots)]
    alone = {mode: _Alone(bundle, mode) for mode in modes}
    together = {mode: _Together(bundle, mode, slots) for mode in modes}
    found: dict[tuple[str, str], list[_Run]] = defaultdict(list)
    for number in range(rounds + 1):
        for mode in modes:
            for how, contender in (("alone", alone[mode]), ("together", together[mode])):
                progress(f"batch round {number} of {rounds}, {mode} {how}" if number else f"warm up {mode} {how}")
                run = contender.run(chosen, max_new_tokens if number else 2)
                if number:
                    found[mode, how].append(run)
    results = {mode: _mode_result(bundle.manifest, found, mode, slots) for mode in modes}
    return BatchResult(slots=slots, rounds=rounds, max_new_tokens=max_new_tokens, modes=results)


def _mode_result(
    manifest: Manifest, found: Mapping[tuple[str, str], list[_Run]], mode: str, slots: int
) -> BatchModeResult:
    alone, together = _middle(found[mode, "alone"]), _middle(found[mode, "together"])
    full_alone, full = _middle(found["full", "alone"]), _middle(found["full", "together"])
    segments = [record for record in together.passes if record.graph.startswith("segment_")]
    layers = {f"segment_{i}": segment.layers for i, segment in enumerate(manifest.graphs.segments)}
    computed = sum(record.rows * layers[record.graph] for record in segments)
    speedup, speedup_alone = _rate(together) / _rate(full), _rate(alone) / _rate(full_alone)
    return BatchModeResult(
        tokens_per_second=_rate(together),
        alone_tokens_per_second=_rate(alone),
        ratio=_rate(together) / _rate(alone),
        speedup=speedup,
        speedup_alone=speedup_alone,
        ideal_speedup=_ideal(manifest, full, together, slots),
        equal_tokens=sum(
            a == b for x, y in zip(together.ids, alone.ids, strict=True) for a, b in zip(x, y, strict=False)
        ),
        tokens=sum(map(len, alone.ids)),
        mean_depth=sum(together.depths) / max(1, together.tokens),
        passes_per_token=len(segments) / max(1, together.tokens),
        passes_per_token_alone=sum(r.graph.startswith("segment_") for r in alone.passes) / max(1, alone.tokens),
        padding=max(0.0, 1 - together.own_rows / computed) if computed else 0.0,
        overhead=max(0.0, 1 - sum(record.seconds for record in together.passes) / together.seconds),
    )


def _ideal(manifest: Manifest, full: _Run, run: _Run, slots: int) -> float:
    """Full depth's time over that of the layers and heads on each emitted token's own way down, each at its share of a
    full-depth pass of all sequences, and of the exits asked; no catching up, padding, verification or overhead."""
    price: dict[str, float] = defaultdict(float)
    for graph in {record.graph for record in full.passes}:
        price[graph] = median(r.seconds for r in full.passes if r.graph == graph) / slots
    way, depth, until = price["embed"], 0, {}
    for step in manifest.schedule:
        depth += manifest.caches[step.cache]
        way += price[f"segment_{step.segment}"]
        until[depth] = way
    exits = sum(record.seconds for record in run.passes if record.graph.startswith("exit_"))
    tokens = sum(until[at] + price["head"] for at in run.depths)
    return (way + price["head"]) * run.tokens / (tokens + exits) if run.tokens else 1.0


def _rate(run: _Run) -> float:
    return run.tokens / run.seconds if run.seconds else 0.0


def _middle(runs: Sequence[_Run]) -> _Run:
    return sorted(runs, key=_rate)[(len(runs) - 1) // 2]
