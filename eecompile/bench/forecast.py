"""What a build would come to on its target, before anything is built: times, tokens per second, work saved, memory."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eecompile import contract as c
from eecompile.bench.cost import Mode, PassCosts
from eecompile.bench.cost_model import TYPICAL_LENGTH, Setting, outline, predict_costs
from eecompile.bench.defaults import sample_traces
from eecompile.bench.machine import measure_rates
from eecompile.bench.memory import Memory, memory_needed
from eecompile.bench.player import Forecast, Player
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
class Prediction:
    """basis: where the rates are from ("" where there are none). length: tokens in the cache of what is priced. batch:
    the forecasts for as many sequences as the build has slots, where these are several."""

    basis: str
    length: int
    graphs: Sequence[GraphCost]
    forecasts: Sequence[Forecast]
    memory: Memory
    batch: Sequence[Forecast] = ()

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
    player = Player(_outline(student), works, rates, setting, costs, length)
    found = _forecasts(student, player)
    batch = _batch(player, found, plan["slots"])
    graphs = _graphs(works, costs, setting, length)
    return Prediction(rates.basis, length, graphs, [forecast for forecast, _ in found], memory, batch)


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


def _forecasts(student: Student, player: Player) -> list[tuple[Forecast, Sequence[str]]]:
    """Full depth, and then each mode with the exits that pay by the student's calibration, with the letters that said
    so. Without a calibration: each exit alone, if every token left there and were right, which is more than any student
    reaches."""
    exits = len(player.manifest.exits)
    found: list[tuple[Forecast, Sequence[str]]] = [(player.full(), [])]
    calibrated = next((r for r in student.exits.schema.calibrations if r.kv == "catch_up" and r.traces), None)
    for mode in MODES if exits else ():
        if calibrated is not None:
            letters, able = _traced(calibrated, mode)
            found.append((player.best(mode, letters, able, f"as in the {calibrated.precision} calibration"), letters))
            continue
        for i in range(exits):
            letters = [_all_leave(i, exits)]
            found.append((player.play(mode, letters, [i], "every token leaves, and is right"), letters))
    return found


def _batch(player: Player, found: Sequence[tuple[Forecast, Sequence[str]]], slots: int) -> list[Forecast]:
    """The forecasts for all slots of the build at once, with the exits that were chosen for one sequence, as a bundle's
    policy has them; full depth alone where an exit has a layer of its own."""
    if slots == 1:
        return []
    layered = any(info.adapter == "layer" for info in player.manifest.exits)
    chosen = [(forecast, letters) for forecast, letters in found if forecast.mode == "full" or not layered]
    return [player.side_by_side(forecast, letters, slots) for forecast, letters in chosen]


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
