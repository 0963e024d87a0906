"""The section `exits` of a config: which exits a student gets, all alike."""

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator
from typing_extensions import Self

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.schema import Criterion, Layer, Strict, Task
from eecompile.shapes import HeadShape, PredictorShape, RouterShape, gates_of
from eecompile.student.exits import EarlyExit, ExitSpec

DRAFTS: dict[Criterion, float] = {  # where drafts begin before anything is calibrated
    "max_prob": 0.9, "margin": 0.8, "entropy": 0.3, "learned": 0.5, "predictor": 0.5, "saturation": 0.95,
    "router": 0.0, "patience": 1.0, "fixed": 0.0, "never": 0.0,
}  # fmt: skip


class ExitsConfig(Strict):
    """Exits after the layers `at`. gates: None is max_prob, of a regression delta. units: of a learned gate. rank: of a
    low-rank head; shortlist: tokens of a shortlist head, the most frequent of the rows to train on. start: new,
    adapters change nothing, or with the checkpoint's own exits, as `eecompile exits` has fitted them."""

    at: Annotated[list[Layer], Field(min_length=1, max_length=c.MAX_EXITS)]
    adapter: Literal["norm", "affine", "mlp", "layer", "classifier"] = "affine"
    start: Literal["new", "checkpoint"] = "new"
    placement: Literal["pre", "post"] = "post"
    gates: Annotated[list[Criterion], Field(min_length=1, max_length=4)] | None = None
    units: Annotated[int, Field(ge=1, le=4096)] = 32
    predictor_units: Annotated[int, Field(ge=1, le=4096)] = 512
    head: Literal["full", "low_rank", "shortlist"] = "full"
    rank: Annotated[int, Field(ge=1, le=c.MAX_HIDDEN)] = c.LOW_RANK
    shortlist: Annotated[int, Field(ge=c.CANDIDATE_COUNT, le=c.MAX_SHORTLIST)] = c.SHORTLIST

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.at != sorted(set(self.at)):
            raise ValueError("list each layer once, shallow first")
        return self

    def schema_with(self, frequent: Callable[[int], list[int]], task: Task = c.CAUSAL_LM) -> EarlyExit:
        """The exits as early_exit.json has them. frequent: the n most frequent tokens. task: the model's.

        Raises UsageError where gates, heads and adapters do not go together, or not with the task.
        """
        usual: list[Criterion] = ["delta"] if task == "regression" else ["max_prob"]
        gates = self.gates or usual
        if wrong := [gate for gate in gates if gate not in gates_of(task)]:
            mend = f"gates of a {task}: {', '.join(gates_of(task))}"
            raise UsageError(f"{wrong[0]} is not a gate of a {task}", where="exits.gates", mend=mend)
        try:
            exits = [self._exit(number, layer, gates, task) for number, layer in enumerate(self.at)]
            return EarlyExit(exits=exits, heads=self._heads(frequent, gates))
        except ValidationError as e:
            raise UsageError(f"no such exits: {e.errors()[0]['msg']}", where="exits") from e

    def _exit(self, number: int, layer: int, gates: list[Criterion], task: Task) -> ExitSpec:
        router = RouterShape(choices=len(self.at) + 1) if "router" in gates and not number else None
        predictor = PredictorShape(head="shortlist", units=self.predictor_units) if "predictor" in gates else None
        return ExitSpec(
            layer=layer,
            adapter=self.adapter,
            placement=self.placement,
            gates=gates,
            gate_units=self.units if "learned" in gates else 0,
            head=self.head,
            router=router,
            predictor=predictor,
            draft={gate: DRAFTS[gate] for gate in gates} if task == c.CAUSAL_LM else None,
        )

    def _heads(self, frequent: Callable[[int], list[int]], gates: list[Criterion]) -> list[HeadShape]:
        heads = []
        if self.head == "low_rank":
            heads.append(HeadShape(name="low_rank", kind="low_rank", rank=self.rank))
        if self.head == "shortlist" or "predictor" in gates:
            heads.append(HeadShape(name="shortlist", kind="shortlist", tokens=sorted(frequent(self.shortlist))))
        return heads
