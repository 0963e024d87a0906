"""What `exits` is asked to fit: the gates, head and schedule that every exit gets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import ValidationError

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.schema import Criterion
from eecompile.shapes import Adaptive, Decay, PredictorShape, RouterShape, Schedule
from eecompile.student.exits import ExitSpec

GATES: Final[tuple[Criterion, ...]] = ("learned", "max_prob")
UNITS: Final = 32  # of a learned gate
PREDICTOR_UNITS: Final = 512


@dataclass(frozen=True)
class ExitPlan:
    """gates: of every exit. head: "full", "low_rank" of rank `rank`, or "shortlist" of the `tokens` most frequent
    tokens of the fit documents. schedule: what moves max_prob's and margin's thresholds while decoding."""

    gates: tuple[Criterion, ...] = GATES
    head: Literal["full", "low_rank", "shortlist"] = "full"
    rank: int = c.LOW_RANK
    tokens: int = c.SHORTLIST
    schedule: Literal["none", "decay", "adaptive"] = "none"

    @classmethod
    def of(
        cls, gates: Sequence[str] = GATES, head: str = "full", rank: int = c.LOW_RANK, tokens: int = c.SHORTLIST,
        schedule: str = "none",
    ) -> "ExitPlan":  # fmt: skip
        """The plan of these options; raises UsageError where they name what there is not or do not fit together."""
        if unknown := sorted(set(gates) - set(c.CRITERIA)):
            raise UsageError(f"there is no gate {unknown[0]!r}", mend=f"gates: {', '.join(c.CRITERIA)}")
        if not gates or len(set(gates)) != len(gates) or len(gates) > 4:
            raise UsageError("an exit has one to four different gates", mend=f"gates: {', '.join(c.CRITERIA)}")
        for name, value, known in (("head", head, c.HEADS), ("schedule", schedule, c.SCHEDULES)):
            if value not in known:
                raise UsageError(f"there is no {name} {value!r}", mend=f"one of {', '.join(known)}")
        if schedule != "none" and not {"max_prob", "margin"} & set(gates):
            raise UsageError("a schedule moves max_prob or margin, and there is neither", mend="--gates max_prob")
        if not 1 <= rank <= c.MAX_HIDDEN or not c.CANDIDATE_COUNT <= tokens <= c.MAX_SHORTLIST:
            raise UsageError(f"a rank of {rank} or a shortlist of {tokens} tokens is out of range")
        return cls(tuple(gates), head, rank, tokens, schedule)  # type: ignore[arg-type]

    @property
    def heads(self) -> set[str]:
        """The small heads that it needs; a predictor's candidates come from a shortlist."""
        wanted = {self.head, *(["shortlist"] if "predictor" in self.gates else [])}
        return wanted - {c.FULL_HEAD}

    def specs(self, layers: Sequence[int]) -> list[ExitSpec]:
        """The exits after these layers, shallow first. One router, the first exit's, chooses the depth of a token."""
        try:
            return [self._spec(number, layer, len(layers)) for number, layer in enumerate(layers)]
        except ValidationError as e:
            raise UsageError(f"no such exits: {e.errors()[0]['msg']}") from e

    def _spec(self, number: int, layer: int, count: int) -> ExitSpec:
        routes = "router" in self.gates and number == 0
        return ExitSpec(
            layer=layer,
            adapter="affine",
            gates=list(self.gates),
            gate_units=UNITS if "learned" in self.gates else 0,
            head=self.head,
            router=RouterShape(choices=count + 1) if routes else None,
            predictor=PredictorShape(head="shortlist", units=PREDICTOR_UNITS) if "predictor" in self.gates else None,
            schedule=self._schedule(),
        )

    def _schedule(self) -> Schedule | None:
        if self.schedule == "decay":
            return Decay(kind="decay")
        return Adaptive(kind="adaptive") if self.schedule == "adaptive" else None
