"""What `bench` measured, as plain values that go to JSON and come back (`report` keeps them inside its page)."""

from typing import Annotated, Literal

from pydantic import Field

from eecompile import contract as c
from eecompile.schema import Layer, Name, Precision, Sha256, Strict, Text

Count = Annotated[int, Field(ge=0, le=1 << 50)]
Seconds = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(ge=0, le=1e12)]
Rounds = Annotated[list[Seconds], Field(min_length=1, max_length=10_000)]


class ModeResult(Strict):
    """One mode over all prompts. The first token of a prompt, which prefill pays for, is left out everywhere.

    tokens_per_second, time: of the round with the median time; `round_seconds` has every round's.
    agreement: share of tokens that are the full model's, given its own continuation as context (exact: its own output
    as context). equal_tokens: of `tokens`, those that stand where full mode put the same one.
    mean_depth: layers run before a token was emitted (exact: drafted); exit_layers: tokens by that depth.
    ideal_speedup: full depth's time over that of the one-row passes on each emitted token's own way down, exits and
    heads included; no catching up, verification or overhead. speedup: measured, everything included.
    layer_rows: rows through layers per token, catch-up included.
    time: mean seconds per token by graph, and "runtime" for what is spent outside the engines; `overhead` is its share.
    """

    tokens_per_second: Positive
    round_seconds: Rounds
    agreement: Share
    equal_tokens: Count
    tokens: Count
    mean_depth: Positive
    ideal_speedup: Positive
    speedup: Positive
    layer_rows: Positive
    drafted: Count
    rejected: Count
    overhead: Share
    time: dict[Name, Seconds]
    exit_layers: dict[Layer, Count]
    note: Text = ""


class UncutResult(Strict):
    """The uncut model as one graph in the same engine, over the same prompts in the same rounds."""

    tokens_per_second: Positive
    round_seconds: Rounds
    equal_tokens: Count


class PeerResult(Strict):
    """Another runtime over the same prompts in the same rounds. speed_ratio: full mode's tokens per second over its."""

    tokens_per_second: Positive
    round_seconds: Rounds
    speed_ratio: Positive
    tokens_equal: bool
    equal_prompts: Count
    precision: Name
    threads: Annotated[int, Field(ge=1, le=4096)]
    version: Name
    note: Text = ""


class BesideResult(Strict):
    """A mode of another bundle over the same prompts in the same rounds. speed_ratio: its tokens per second over those
    of the measured bundle in that mode; speedup: over the measured bundle's full depth. agreement: of its policy with
    the measured bundle's full depth."""

    tokens_per_second: Positive
    round_seconds: Rounds
    speed_ratio: Positive
    speedup: Positive
    agreement: Share


class GraphTime(Strict):
    """Median seconds of one decoding pass of a graph over `rows` rows, in the engine alone."""

    graph: Name
    rows: Annotated[int, Field(ge=1, le=65536)]
    seconds: Seconds
    passes: Count


class BatchModeResult(Strict):
    """One mode, sequences side by side (without their first tokens) and alone. Rates are of the round with the median.

    ratio: side by side over alone. speedup: over full mode side by side; speedup_alone: the same alone. ideal_speedup:
    of the layers before each emission only, at a full batch's price. equal_tokens: of `tokens`, those that are the same
    as alone. passes_per_token: engine passes of segments. padding: share of the rows through layers that were nobody's.
    overhead: share of the time outside the engines.
    """

    tokens_per_second: Positive
    alone_tokens_per_second: Positive
    ratio: Positive
    speedup: Positive
    speedup_alone: Positive
    ideal_speedup: Positive
    equal_tokens: Count
    tokens: Count
    mean_depth: Positive
    passes_per_token: Positive
    passes_per_token_alone: Positive
    padding: Share
    overhead: Share


class BatchResult(Strict):
    """What a batch of `slots` sequences does, by mode."""

    slots: Annotated[int, Field(ge=2, le=4096)]
    rounds: Count
    max_new_tokens: Count
    modes: dict[Name, BatchModeResult]


class KVPoint(Strict):
    """One rule where `pending` of any `pending` + 1 tokens leave at the exit. tokens_per_second: of all of them, exits
    and their heads not asked. agreement, perplexity: of the `tokens` from full depth, against the full model's choice.
    """

    rule: Name
    pending: Count
    tokens_per_second: Positive
    agreement: Share
    perplexity: Annotated[float, Field(ge=0)]
    tokens: Count


class KVResult(Strict):
    """The rules for skipped layers, tokens leaving after `layer` layers."""

    layer: Layer
    points: list[KVPoint]


class Machine(Strict):
    """Where it was measured. threads: of the process-wide pool. backend: what ran the graphs."""

    device: Name
    processors: Annotated[int, Field(ge=1, le=65536)]
    threads: Annotated[int, Field(ge=1, le=4096)]
    system: Name
    python: Name
    onnxruntime: Name
    backend: Name = "onnxruntime"


class BenchResult(Strict):
    """The result of `run_bench`. `modes` lacks the modes in `refused`, `peers` those in `skipped`; both say why.

    core, policy: digests of what was measured. chain_over_uncut: time of the segments at full depth over that of the
    uncut graph. peak_memory_mb: most resident memory (10^6 bytes) of this process when all modes had run once. beside:
    the modes that another bundle has as well.
    """

    kind: Literal["bench"] = "bench"
    version: Literal[1] = 1
    eecompile: Name
    core: Sha256
    policy: Sha256
    precision: Precision
    layers: Annotated[int, Field(ge=1, le=c.MAX_LAYERS)]
    machine: Machine
    prompts: Count
    prompt_tokens: Count
    max_new_tokens: Count
    rounds: Count
    modes: dict[Name, ModeResult]
    refused: dict[Name, Text]
    uncut: UncutResult | None
    chain_over_uncut: Positive | None
    graphs: list[GraphTime]
    peak_memory_mb: Positive
    memory_includes: Text
    peers: dict[Name, PeerResult]
    skipped: dict[Name, Text]
    batch: BatchResult | None = None
    kv: KVResult | None = None
    beside: dict[Name, BesideResult] = Field(default_factory=dict)
