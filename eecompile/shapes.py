"""What an exit is made of, as early_exit.json and the manifest both say it: gates, small heads, schedules."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from eecompile import contract as c
from eecompile.schema import Criterion, HeadKind, HeadName, Probability, Strict, Task, TokenId


class RouterShape(Strict):
    """A router's own weights at an exit: `choices` C, which are to stop here, at one of the exits after it, or not at
    all; `units` of a GELU layer before them (0: a linear router). It reads the hidden state as it is."""

    choices: Annotated[int, Field(ge=2, le=c.MAX_EXITS + 1)]
    units: Annotated[int, Field(ge=0, le=4096)] = 0


class PredictorShape(Strict):
    """SpecEE's predictor: candidates are the best tokens of the small head `head`; `units` of its MLP."""

    head: HeadName
    units: Annotated[int, Field(ge=1, le=4096)] = 512


class Decay(Strict):
    """CALM's time-decayed threshold: clip(.9 l + .1 exp(-tau t / tokens), 0, 1) for the t-th token of an answer. The
    policy's threshold is what it decays to, .9 l: it is never bolder than that."""

    kind: Literal["decay"]
    tau: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 4.0
    tokens: Annotated[int, Field(ge=1, le=c.MAX_CONTEXT)] = 128


class Adaptive(Strict):
    """FREE's adaptive threshold: the lowest of `points` from `low` to `high` from which on a confidence is more than
    `zeta` likely one of an exit that agrees, by two Beta distributions; fitted at most `updates` times a sequence."""

    kind: Literal["adaptive"]
    zeta: Probability = 0.4
    low: Probability = 0.3
    high: Probability = 0.9
    points: Annotated[int, Field(ge=2, le=1000)] = 10
    updates: Annotated[int, Field(ge=1, le=1 << 20)] = 300


Schedule = Annotated[Decay | Adaptive, Field(discriminator="kind")]


class ExitShape(Strict):
    """An exit after `layer` layers; all its `gates` have to fire. `gate_units` is U of the learned gate (0: none).

    head: "full" or the name of a small head. router: None also where the gate goes by an earlier exit's router.
    schedule: moves the thresholds of max_prob and margin while decoding.
    """

    layer: Annotated[int, Field(ge=1, le=c.MAX_LAYERS)]
    adapter: Literal["norm", "affine", "mlp", "layer", "classifier"]
    gates: Annotated[list[Criterion], Field(min_length=1, max_length=4)]
    gate_units: Annotated[int, Field(ge=0, le=4096)] = 0
    head: HeadName = c.FULL_HEAD
    router: RouterShape | None = None
    predictor: PredictorShape | None = None
    schedule: Schedule | None = None

    @model_validator(mode="after")
    def _gates_have_what_they_need(self) -> Self:
        if len(set(self.gates)) != len(self.gates):
            raise ValueError("a gate is named twice")
        if ("learned" in self.gates) != (self.gate_units > 0):
            raise ValueError("gate_units is the width of the learned gate, and 0 without one")
        if self.router is not None and "router" not in self.gates:
            raise ValueError("a router without its gate")
        if ("predictor" in self.gates) != (self.predictor is not None):
            raise ValueError("a predictor and its gate belong together")
        if self.schedule is not None and not {"max_prob", "margin"} & set(self.gates):
            raise ValueError("a schedule moves the threshold of max_prob or margin, and there is neither")
        return self

    def gate_sizes(self, hidden: int) -> dict[str, tuple[int, int, int]]:
        """(inputs, units, outputs) of each gate that has weights, by name; `hidden` is D."""
        sizes: dict[str, tuple[int, int, int]] = {}
        if self.gate_units:
            sizes["gate"] = (hidden, self.gate_units, 1)
        if self.router is not None:
            sizes[c.ROUTER] = (hidden, self.router.units, self.router.choices)
        if self.predictor is not None:
            sizes[c.PREDICTOR] = (3 * c.CANDIDATE_COUNT, self.predictor.units, 1)
        return sizes


class HeadShape(Strict):
    """A head that is smaller than the model's. low_rank: a product of two matrices, `rank` wide; shortlist: the head's
    own rows of `tokens`, the only ones that it can answer.

    Either stands in for the full head's product alone: the model's own scale, bias and bound of logits follow, as
    they do there. `bias`: a low-rank head adds one of its own to its product, before any of these.
    """

    name: HeadName
    kind: HeadKind
    rank: Annotated[int, Field(ge=0, le=c.MAX_HIDDEN)] = 0
    bias: bool = False
    tokens: Annotated[list[TokenId], Field(max_length=c.MAX_SHORTLIST)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        if self.name == c.FULL_HEAD:
            raise ValueError("a small head needs a name of its own")
        if self.kind == "low_rank" and (self.tokens or not self.rank):
            raise ValueError("a low-rank head has a rank and answers every token")
        if self.kind == "shortlist" and (self.rank or self.bias or len(set(self.tokens)) != len(self.tokens)):
            raise ValueError("a shortlist has neither rank nor bias and names each token once")
        if self.kind == "shortlist" and len(self.tokens) < c.CANDIDATE_COUNT:
            raise ValueError(f"a shortlist has at least {c.CANDIDATE_COUNT} tokens")
        return self

    def rows(self, vocab: int) -> int:
        """Its logits in a model of `vocab` tokens."""
        return len(self.tokens) if self.kind == "shortlist" else vocab

    def weights(self, hidden: int, vocab: int) -> int:
        """Numbers that a pass reads, `hidden` D and `vocab` V of the model."""
        return hidden * len(self.tokens) if self.kind == "shortlist" else self.rank * (hidden + vocab)


def weight_shapes(inputs: int, units: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a gate by part: one layer where there are no units, else two."""
    last: dict[str, tuple[int, ...]] = {"w2": (units or inputs, outputs), "b2": (outputs,)}
    return {"w1": (inputs, units), "b1": (units,), **last} if units else last


def exits_fault(exits: Sequence[ExitShape], heads: Sequence[HeadShape]) -> str | None:
    """What exits, shallow first, ask of each other or of `heads` that is not there, or None."""
    names = [head.name for head in heads]
    if len(set(names)) != len(names):
        return "two heads have one name"
    for number, e in enumerate(exits):
        wanted = [e.head] if e.predictor is None else [e.head, e.predictor.head]
        if missing := [name for name in wanted if name not in (c.FULL_HEAD, *names)]:
            return f"exit {e.layer} asks for the head {missing[0]}, which is not there"
        if e.predictor is not None and e.predictor.head == c.FULL_HEAD:
            return f"the predictor of exit {e.layer} needs a small head for its candidates"
        if "router" in e.gates:
            source = router_of(exits, number)
            choices = 0 if source is None else (exits[source].router or RouterShape(choices=2)).choices
            if source is None or number - source > choices - 2:
                return f"exit {e.layer} has no router, nor has one before it that can choose to stop here"
    if len({e.predictor.head for e in exits if e.predictor is not None}) > 1:
        return "the predictors of all exits look at the same candidates, so that they share a head"
    return None


def gates_of(task: Task) -> tuple[str, ...]:
    """The criteria that exits may go by in a model of this task."""
    if task == c.CAUSAL_LM:
        return c.CRITERIA
    return c.VALUE_CRITERIA if task == "regression" else c.LABEL_CRITERIA


def task_fault(exits: Sequence[ExitShape], heads: Sequence[HeadShape], task: Task) -> str | None:
    """What exits or `heads` have that a model of this task cannot have, or None."""
    for e in exits:
        if unable := [gate for gate in e.gates if gate not in gates_of(task)]:
            return f"exit {e.layer} has the gate {unable[0]}, which a {task} cannot have"
        if task == c.CAUSAL_LM and e.adapter == "classifier":
            return f"exit {e.layer} has a classifier of its own, which only exits of encoders may"
    if task != c.CAUSAL_LM and (heads or any(e.schedule is not None for e in exits)):
        return "small heads and schedules are for language models"
    return None


def router_of(exits: Sequence[ExitShape], number: int) -> int | None:
    """The exit whose router exit `number` goes by: its own, or the last before it."""
    return next((i for i in range(number, -1, -1) if exits[i].router is not None), None)
