"""What a build would come to on its target, before anything is built: times, tokens per second, work saved, memory."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eecompile import contract as c
from eecompile.bench.cost import Mode, PassCosts, full_depth_seconds, simulate
from eecompile.bench.cost_model import TYPICAL_LENGTH, Setting, outline, pass_bytes, predict_costs
from eecompile.bench.defaults import best_subset, sample_traces
from eecompile.bench.machine import measure_rates
from eecompile.bench.memory import Memory, memory_needed
from eecompile.bench.rates import Rates, rates_from_target
from eecompile.bench.work import Work
from eecompile.bench.work_student import plan_of, stored_weights, works_from_student
from eecompile.bundle.manifest import ExitInfo, Manifest, Step
from eecompile.engines.ort import processors, thread_pool
from eecompile.schema import CalibrationResult
from eecompile.student.student import Student
from eecompile.target import Target

CEILING_TOKENS = 256
MODES: tuple[Mode, ...] = ("confident", "exact")


@dataclass(frozen=True)
class GraphCost:
    """One graph: its layers, the bytes of weights that a pass reads, and the seconds of a pass of one row, of the most
    rows that a decoding pass has, and of a prefill's (None: the target's rates are not known)."""

    graph: str
    layers: int
    weights: float
    one_row: float | None
    most_rows: float | None
    prefill: float | None


@dataclass(frozen=True)
class Forecast:
    """Decoding in one mode with the exits after these layers open. basis: what is known of when they fire. speedup:
    over full depth. layer_rows, bytes: of a token, everything included."""

    mode: Mode
    exits: Sequence[int]
    basis: str
    tokens_per_second: float
    speedup: float
    mean_depth: float
    layer_rows: float
    bytes: float


@dataclass(frozen=True)
class Prediction:
    """basis: where the rates are from ("" where there are none). length: tokens in the cache of what is priced."""

    basis: str
    length: int
    graphs: Sequence[GraphCost]
    forecasts: Sequence[Forecast]
    memory: Memory

    def to_dict(self) -> dict[str, Any]:
        """As plain values, the memory's total and verdict included."""
        return {**asdict(self), "memory": {**asdict(self.memory), "total": self.memory.total, "fits": self.memory.fits}}


def predict_build(
    student: Student, target: Target, plan: Mapping[str, Any], *, rates: Rates | None = None
) -> Prediction:
    """What `pipeline.plan` chose for the student comes to on the target.

    rates: the target's, which are otherwise its data sheet's, or this machine's where the target is the processor at
    hand: they are then measured, which takes seconds and makes the process-wide thread pool. A target whose rates
    differ from card to card has none: its memory alone is predicted.
    """
    precision = plan["precision"]
    works = works_from_student(student, precision, plan["cache"], kv="propagate" in plan["kv"])
    setting = setting_of(target, plan)
    weights = stored_weights(student, precision, works, shared=target.backend == "onnxruntime")
    rates = rates or rates_of(target, plan, student.spec.hidden, weights)
    memory = memory_needed(
        student.spec,
        setting,
        weights=weights,
        cached=_cached(student, works),
        slots=plan["slots"],
        value=rates.value if rates else 2.0,
        limit=target.memory,
    )
    length = setting.lengths[-1] if setting.fixed else min(TYPICAL_LENGTH, setting.context)
    if rates is None:
        return Prediction("", length, _graphs(works, None, setting, length), [], memory)
    costs = predict_costs(works, rates, setting)
    forecasts = _forecasts(student, _Player(_outline(student), works, rates, setting, costs, length))
    return Prediction(rates.basis, length, _graphs(works, costs, setting, length), forecasts, memory)


def rates_of(target: Target, plan: Mapping[str, Any], width: int, weights: float) -> Rates | None:
    """The target's rates: of its data sheet, measured here where it is the processor at hand (for a model of this width
    and bytes of weights), or None."""
    if target.bandwidth:
        return rates_from_target(target, plan.get("compute", "float32"))
    if target.backend == "onnxruntime":
        made = thread_pool()
        threads = made[0] if made else processors()
        return measure_rates(width, plan["precision"], weights, threads=threads, launch=target.launch)
    return None


def setting_of(target: Target, plan: Mapping[str, Any]) -> Setting:
    """How a build of this plan runs there."""
    context = plan["context"]
    return Setting.on(
        target,
        cap=plan["pending_cap"],
        minimum_rows=plan["minimum_rows"],
        prefill_rows=c.PREFILL_ROWS,
        context=context,
        slack=c.SLACK + (-context) % c.CACHE_BUCKET,
    )


def _cached(student: Student, works: Mapping[str, Work]) -> float:
    """Bytes of one token in all caches: a segment that runs again has another cache."""
    steps = [works[f"segment_{visit.piece}"].cached for visit in plan_of(student).visits]
    exits = range(len(student.exits.schema.exits))
    return sum(steps) + sum(works[f"exit_{i}"].cached for i in exits)


def _graphs(works: Mapping[str, Work], costs: PassCosts | None, setting: Setting, length: int) -> list[GraphCost]:
    found = []
    for name, work in works.items():
        counts = (1, setting.cap + 1, setting.prefill_rows)
        seconds = [None if costs is None else costs.seconds(name, rows, length) for rows in counts]
        found.append(GraphCost(name, work.layers, work.weights, *seconds))
    return found


@dataclass(frozen=True)
class _Player:
    """Replays letters through the loop, priced by the cost model."""

    manifest: Manifest
    works: Mapping[str, Work]
    rates: Rates
    setting: Setting
    costs: PassCosts
    length: int

    def full(self) -> Forecast:
        """Every token runs every layer."""
        steps = [(f"segment_{step.segment}", 1) for step in self.manifest.schedule]
        passes = [("embed", 1), *steps, ("head", 1)]
        moved = sum(pass_bytes(self.works, self.rates, self.setting, {passed: 1}) for passed in passes)
        depth = self.manifest.model.layers
        return Forecast("full", [], "", 1 / self._full_seconds(), 1.0, depth, depth, moved)

    def play(self, mode: Mode, letters: Sequence[str], exits: Sequence[int], basis: str) -> Forecast:
        """In `mode`, with these exits open."""
        played = simulate(
            self.manifest, self.costs, letters, open_exits=exits, mode=mode, cap=self.setting.cap, length=self.length
        )
        return Forecast(
            mode=mode,
            exits=[self.manifest.exits[i].layer for i in exits],
            basis=basis,
            tokens_per_second=1 / played.seconds_per_token,
            speedup=self._full_seconds() / played.seconds_per_token,
            mean_depth=played.mean_depth,
            layer_rows=played.layer_rows_per_token,
            bytes=pass_bytes(self.works, self.rates, self.setting, played.passes) / played.tokens,
        )

    def best(self, mode: Mode, letters: Sequence[str], able: Sequence[int], basis: str) -> Forecast:
        """With those of the exits open that together take the least time."""
        chosen = best_subset(able, lambda some: 1 / self.play(mode, letters, sorted(some), basis).tokens_per_second)
        return self.play(mode, letters, sorted(chosen), basis)

    def _full_seconds(self) -> float:
        return full_depth_seconds(self.manifest, self.costs, self.length)


def _forecasts(student: Student, player: _Player) -> list[Forecast]:
    """Full depth, and then each mode with the exits that pay by the student's calibration. Without one: each exit
    alone, if every token left there and were right, which is more than any student reaches."""
    found, exits = [player.full()], len(player.manifest.exits)
    calibrated = next((r for r in student.exits.schema.calibrations if r.kv == "catch_up" and r.traces), None)
    for mode in MODES if exits else ():
        if calibrated is not None:
            letters, able = _traced(calibrated, mode)
            found.append(player.best(mode, letters, able, f"as in the {calibrated.precision} calibration"))
            continue
        found += [
            player.play(mode, [_all_leave(i, exits)], [i], "every token leaves, and is right") for i in range(exits)
        ]
    return found


def _all_leave(exit_: int, exits: int) -> str:
    return ("." * exit_ + "a" + "." * (exits - exit_ - 1)) * CEILING_TOKENS


def _traced(found: CalibrationResult, mode: Mode) -> tuple[list[str], list[int]]:
    """The traces of a mode and the exits that may be open in it."""
    chosen = found.path[found.chosen].thresholds if found.chosen is not None else []
    drafts = mode == "exact" and bool(found.draft_traces)
    thresholds = found.draft if drafts else chosen
    able = [i for i, t in enumerate(thresholds) if t is not None and "never" not in t]
    return sample_traces(found.draft_traces if drafts else found.traces, len(found.path[0].thresholds)), able


def _outline(student: Student) -> Manifest:
    plan, schema = plan_of(student), student.exits.schema
    exits = [
        ExitInfo.model_validate({"layer": e.depth, **e.model_dump(exclude={"draft", "placement", "layer"})})
        for e in schema.exits
    ]
    steps = [Step(segment=visit.piece, cache=k, exit=visit.exit) for k, visit in enumerate(plan.visits)]
    return outline(exits, steps, [len(piece) for piece in plan.pieces])
