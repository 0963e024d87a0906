"""The bundle's schema: `manifest.json` and the overlays, as pydantic models that refuse what they do not know.

Everything here is read from disk that nobody vouches for, so every number has a range and every text a length.
"""

import math
import re
from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from eecompile import contract as c
from eecompile.bundle.device import device_fault
from eecompile.schema import (
    CacheType,
    CalibrationResult,
    ComputeType,
    GraphInfo,
    Index,
    KVRule,
    Layer,
    Name,
    PlainName,
    Precision,
    Probability,
    Sha256,
    Strict,
    Task,
    Text,
    Thresholds,
    TokenId,
)
from eecompile.shapes import ExitShape, HeadShape, exits_fault, task_fault


class Graphs(Strict):
    """The graphs of a bundle; `exits[i]` is exit i's adapter and cheap gates, `heads[i]` small head i, `reference` the
    uncut model, `encoder` what an encoder-decoder runs once over the source.

    `kv[i]`: segment i's K/V-only graph, for the rule `propagate`; None where only the first step runs the segment.
    """

    embed: GraphInfo
    segments: Annotated[list[GraphInfo], Field(min_length=1, max_length=c.MAX_EXITS + 4)]
    exits: Annotated[list[GraphInfo], Field(max_length=c.MAX_EXITS)]
    head: GraphInfo
    heads: Annotated[list[GraphInfo], Field(max_length=c.MAX_HEADS_OF_EXITS)] = Field(default_factory=list)
    reference: GraphInfo | None = None
    kv: Annotated[list[GraphInfo | None], Field(max_length=c.MAX_EXITS + 1)] = Field(default_factory=list)
    encoder: GraphInfo | None = None

    def all(self) -> list[GraphInfo]:
        """Every graph, those that a bundle may lack last."""
        optional = [graph for graph in (*self.kv, self.reference, self.encoder) if graph is not None]
        return [self.embed, *self.segments, *self.exits, self.head, *self.heads, *optional]


class DeviceGraphs(Strict):
    """The graphs that engines of the target `target` are made of: the bundle's own with the same inputs and outputs,
    but computed in `compute`, in operators that its parser takes, and for caches of one length, context and slack. They
    share the weight files. There is no reference among them. plan: the build plan (engines/plan.py).
    """

    target: PlainName
    dialect: Literal["modern", "classic"]
    opset: Annotated[int, Field(ge=13, le=64)]
    compute: ComputeType
    cache: Literal["fp32", "fp16"]
    graphs: Graphs
    plan: Name


class CycleInfo(Strict):
    """A gate that has a step run again for a row, at most `repeats` times. `weights` is the file that has its think
    vector [D], its weight [D] and its bias [1], float32 little-endian."""

    threshold: Probability
    repeats: Annotated[int, Field(ge=1, le=c.MAX_REPEATS)]
    weights: Name


class Step(Strict):
    """One entry of the schedule: run `segment` on `cache`, again for rows whose `cycle` says so; then, if there is one,
    ask `exit`.

    A segment that several steps run may take LoRA factors: `factors` is then the file that has this step's, float32
    little-endian, one after another in the order of the segment's inputs.
    """

    segment: Index
    cache: Index
    exit: Index | None = None
    factors: Name | None = None
    cycle: CycleInfo | None = None


class ExitInfo(ExitShape):
    """An exit of a bundle."""


class ModelInfo(Strict):
    """What a runtime needs to know of the model. Sizes as in contract.py; `context` is S in tokens."""

    family: Name
    layers: Annotated[int, Field(ge=1, le=c.MAX_LAYERS)]
    hidden: Annotated[int, Field(ge=1, le=c.MAX_HIDDEN)]
    heads: Annotated[int, Field(ge=1, le=c.MAX_HEADS)]
    kv_heads: Annotated[int, Field(ge=1, le=c.MAX_HEADS)]
    head_dim: Annotated[int, Field(ge=1, le=4096)]
    vocab: Annotated[int, Field(ge=1, le=c.MAX_VOCAB)]
    context: Annotated[int, Field(ge=1, le=c.MAX_CONTEXT)]
    bos: TokenId | None = None
    eos: Annotated[list[TokenId], Field(max_length=64, default_factory=list)]
    parameters: Annotated[int, Field(ge=0, le=1 << 48)] = 0


class SourceInfo(Strict):
    """What an encoder-decoder reads: a source of at most `context` tokens; its target begins with the token `start`."""

    context: Annotated[int, Field(ge=1, le=c.MAX_CONTEXT)]
    start: TokenId


class EncoderInfo(Strict):
    """What a runtime needs to know of an encoder besides. `types`: kinds of tokens that `token_types` tells apart (0:
    the graph has no such input). `padding`: the id whose positions are skipped (student/encoder.py), None: none is."""

    types: Annotated[int, Field(ge=0, le=1024)]
    padding: TokenId | None = None


class FileInfo(Strict):
    """A core file's size in bytes and its SHA-256."""

    bytes: Annotated[int, Field(ge=0, le=c.MAX_FILE_BYTES)]
    sha256: Sha256


class Manifest(Strict):
    """The core of a bundle. `digest` is the SHA-256 of the canonical JSON of everything else here.

    `minimum_rows`: passes of fewer rows are padded to this many, where the engine would compute a lone row by
    another kernel. `slack`: positions past `context` that padding may have. `cache`: what keys and values are kept in.
    `source`: of an encoder-decoder, whose prompts are sources and whose decoder begins by itself. `labels`, in the
    classifier's order, and `encoder` belong to every task but causal-lm. `device`: of a target that engines are built
    for, the graphs that they are made of.
    """

    format: Literal["eecompile-bundle"]
    version: Literal[1]
    eecompile: Name
    model: ModelInfo
    target: PlainName
    precision: Precision
    cache: CacheType = "fp32"
    kv_rules: Annotated[list[KVRule], Field(min_length=1, max_length=4)]
    pending_cap: Annotated[int, Field(ge=1, le=1024)]
    prefill_rows: Annotated[int, Field(ge=1, le=65536)]
    minimum_rows: Annotated[int, Field(ge=1, le=16)]
    slack: Annotated[int, Field(ge=1, le=65536)]
    slots: Annotated[int, Field(ge=1, le=4096)]
    exits: Annotated[list[ExitInfo], Field(max_length=c.MAX_EXITS)]
    heads: Annotated[list[HeadShape], Field(max_length=c.MAX_HEADS_OF_EXITS)] = Field(default_factory=list)
    schedule: Annotated[list[Step], Field(min_length=1, max_length=c.MAX_LAYERS)]
    caches: Annotated[list[Layer], Field(min_length=1, max_length=c.MAX_LAYERS)]
    graphs: Graphs
    source: SourceInfo | None = None
    tokenizer: bool
    provenance: dict[Name, Text | int | float | bool | None]
    task: Task = "causal-lm"
    labels: Annotated[list[Name], Field(max_length=c.MAX_LABELS, default_factory=list)]
    encoder: EncoderInfo | None = None
    device: DeviceGraphs | None = None
    files: Annotated[dict[Name, FileInfo], Field(max_length=c.MAX_FILES)]
    digest: Sha256

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if len(self.graphs.exits) != len(self.exits):
            raise ValueError(f"{len(self.exits)} exits but {len(self.graphs.exits)} exit graphs")
        if any((e.adapter == "layer") != g.layers for e, g in zip(self.exits, self.graphs.exits, strict=True)):
            raise ValueError("an exit's graph has as many layers as its adapter says: one of a layer, else none")
        if len(self.graphs.heads) != len(self.heads):
            raise ValueError(f"{len(self.heads)} small heads but {len(self.graphs.heads)} graphs of them")
        if any(token >= self.model.vocab for head in self.heads for token in head.tokens):
            raise ValueError("a shortlist has a token that is not in the vocabulary")
        if reason := exits_fault(self.exits, self.heads):
            raise ValueError(reason)
        if self.model.heads % self.model.kv_heads:
            raise ValueError(f"{self.model.heads} heads cannot share {self.model.kv_heads} key/value heads evenly")
        if self.minimum_rows > self.slack or self.pending_cap + 1 > self.slack:
            raise ValueError("the slack is smaller than a padded pass")
        if any(token >= self.model.vocab for token in [self.model.bos or 0, *self.model.eos]):
            raise ValueError("bos or eos is not in the vocabulary")
        return self

    @property
    def classes(self) -> int:
        """What a head chooses from: the labels of a classifier, else the vocabulary."""
        return len(self.labels) or self.model.vocab

    @model_validator(mode="after")
    def _task_has_its_labels(self) -> Self:
        encodes = self.task != c.CAUSAL_LM
        if encodes != (self.encoder is not None) or encodes != bool(self.labels):
            raise ValueError(
                f"labels and the encoder's description belong to a classifier, and the task is {self.task}"
            )
        if encodes and (self.task == "regression") != (len(self.labels) == 1):
            raise ValueError(f"{len(self.labels)} labels for {self.task}")
        if reason := task_fault(self.exits, self.heads, self.task):
            raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _rules_have_their_graphs(self) -> Self:
        segments, kv = self.graphs.segments, self.graphs.kv
        if self.task != c.CAUSAL_LM:
            if kv or not set(self.kv_rules) <= set(c.GRANULARITIES.values()):
                raise ValueError("an encoder has no rule or graph for caches, which it lacks")
            return self
        if "none" in self.kv_rules or len(set(self.kv_rules)) != len(self.kv_rules) or self.kv_rules[0] != "catch_up":
            raise ValueError("the K/V rules are not catch_up and others, each once")
        if ("propagate" in self.kv_rules) != bool(kv) or (kv and len(kv) != len(segments)):
            raise ValueError("the rule propagate needs a place for a K/V-only graph for each segment")
        for step in self.schedule[1:]:
            found = kv[step.segment] if kv and step.segment < len(kv) else None
            if kv and (found is None or found.layers != segments[step.segment].layers):
                raise ValueError(f"segment {step.segment} has no K/V-only graph of its layers")
        if kv and (any(s.factors or s.cycle for s in self.schedule) or any(e.adapter == "layer" for e in self.exits)):
            raise ValueError("the rule propagate does not go with LoRA, cyclic gates or exits with a layer")
        return self

    @model_validator(mode="after")
    def _compact_caches_keep_positions(self) -> Self:
        if "selected" in self.kv_rules and any(e.adapter == "layer" for e in self.exits):
            raise ValueError("the rule selected does not go with exits with a layer")
        kept = [t for segment in self.graphs.segments for t in segment.inputs if t.name == c.KEY_POSITIONS]
        if kept and "selected" not in self.kv_rules:
            raise ValueError("key positions are kept for the rule selected alone")
        if any((t.dtype, t.shape) != ("int64", ["B", 1, c.LENGTH, 1]) for t in kept):
            raise ValueError("key positions are not int64 [B, 1, T, 1]")
        return self

    @model_validator(mode="after")
    def _source_has_an_encoder(self) -> Self:
        source, encoder = self.source, self.graphs.encoder
        if (source is None) != (encoder is None):
            raise ValueError("a source and an encoder belong together")
        crosses = [c.cross_name(kind, i) for i in range(self.model.layers) for kind in ("key", "value")]
        asked = {t.name for segment in self.graphs.segments for t in segment.inputs if _is_of_source(t.name)}
        if asked != (set() if source is None else {c.SOURCE_LENGTH, *crosses}):
            raise ValueError("the segments do not take what an encoder gives")
        if source is None or encoder is None:
            return self
        interface = [[t.name for t in tensors] for tensors in (encoder.inputs, encoder.outputs)]
        if interface != [[c.TOKEN_IDS, c.SOURCE_LENGTH], crosses]:
            raise ValueError("the encoder does not give every layer its keys and values")
        if source.start >= self.model.vocab:
            raise ValueError("the start token is not in the vocabulary")
        if self.slots != 1:
            raise ValueError("an encoder-decoder has one slot")
        if self.kv_rules != ["catch_up"]:
            raise ValueError("an encoder-decoder knows the rule catch_up alone")
        return self

    @model_validator(mode="after")
    def _device_graphs_take_the_place_of_the_others(self) -> Self:
        if reason := device_fault(self):
            raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        segments, exits = self.graphs.segments, self.exits
        depth, asked = 0, []
        for step in self.schedule:
            if step.segment >= len(segments) or step.cache >= len(self.caches):
                raise ValueError(f"the schedule names a missing segment {step.segment} or cache {step.cache}")
            if self.caches[step.cache] != segments[step.segment].layers:
                raise ValueError(f"cache {step.cache} and segment {step.segment} differ in layers")
            if step.cycle is not None and step is self.schedule[-1]:
                raise ValueError("a cyclic gate reads hidden states, and the last step gives normalised rows")
            if not self.caches[step.cache] and step is not self.schedule[-1]:
                raise ValueError(f"segment {step.segment} has no layers and is not the last")
            depth += segments[step.segment].layers
            if step.exit is not None:
                asked.append(step.exit)
                if step.exit >= len(exits) or exits[step.exit].layer != depth:
                    raise ValueError(f"exit {step.exit} is asked after {depth} layers, which is not where it is")
        if depth != self.model.layers or asked != list(range(len(exits))):
            raise ValueError("the schedule does not run the model's layers and ask every exit in order")
        if sorted(step.cache for step in self.schedule) != list(range(len(self.caches))):
            raise ValueError("the schedule does not use every cache once")
        if self.schedule[-1].exit is not None:
            raise ValueError("an exit stands after the last layer")
        return self

    @model_validator(mode="after")
    def _factors_are_there(self) -> Self:
        for step in self.schedule:
            size = 4 * (2 * self.model.hidden + 1)
            if step.cycle and (step.cycle.weights not in self.files or self.files[step.cycle.weights].bytes != size):
                raise ValueError(f"the cyclic gate's {step.cycle.weights} is not a file of {size} bytes")
            shapes = factor_shapes(self.graphs.segments[step.segment]).values()
            if bool(shapes) != (step.factors is not None):
                raise ValueError(f"segment {step.segment} and its steps do not agree on whether there are factors")
            if step.factors is None:
                continue
            size = 4 * sum(math.prod(shape) for shape in shapes)
            if step.factors not in self.files or self.files[step.factors].bytes != size:
                raise ValueError(f"the factors {step.factors} are not a file of {size} bytes")
        return self


_FACTOR = re.compile(rf"{c.LORA}[ab]_[0-9]{{1,4}}_(?:q|k|v|o|gate|up|down)")


def factor_shapes(segment: GraphInfo) -> dict[str, tuple[int, ...]]:
    """The shapes of a segment's LoRA inputs by name, in order. Raises ValueError where one is not of fixed size."""
    found: dict[str, tuple[int, ...]] = {}
    for tensor in segment.inputs:
        if not tensor.name.startswith(c.LORA):
            continue
        sizes = tuple(size for size in tensor.shape if isinstance(size, int))
        known = _FACTOR.fullmatch(tensor.name) is not None
        if not known or len(sizes) != len(tensor.shape) or tensor.dtype != "float32":
            raise ValueError(f"{tensor.name}, {tensor.dtype} {tensor.shape}, is no factor of float32 and fixed size")
        found[tensor.name] = sizes
    return found


def _is_of_source(name: str) -> bool:
    return name == c.SOURCE_LENGTH or name.startswith(("cross_key_", "cross_value_"))


class GateWeights(Strict):
    """A gate's weights, float32 little-endian in base64: W1 [in, U], b1 [U], W2 [U, out], b2 [out]; with no units W2
    [in, out] and b2 alone. What it computes from them is the exit graph's (docs/BUNDLE_FORMAT.md)."""

    units: Annotated[int, Field(ge=0, le=4096)]
    w1: Annotated[str, Field(max_length=c.MAX_OVERLAY_BYTES)]
    b1: Text
    w2: Text
    b2: Text


class ExitPolicy(Strict):
    """One exit at run time. None means never: in confident mode (`confident`), for drafts of exact mode (`draft`).
    `gate`, `router` and `predictor` are the weights of the gates that have any."""

    layer: Layer
    confident: Thresholds | None
    draft: Thresholds | None
    gate: GateWeights | None = None
    router: GateWeights | None = None
    predictor: GateWeights | None = None
    reason: Text = ""


class Policy(Strict):
    """overlays/policy.json. `minimum_depth`: layers every token runs. `budget`: layer-rows a request may spend.

    `kv`: the rule for skipped layers that the confident thresholds are for, and that confident mode has by default.
    """

    kind: Literal["policy"] = "policy"
    core: Sha256
    exits: Annotated[list[ExitPolicy], Field(max_length=c.MAX_EXITS)]
    minimum_depth: Layer = 0
    budget: Annotated[int, Field(ge=1, le=1 << 62)] | None = None
    kv: KVRule = "catch_up"
    digest: Sha256


class Calibration(CalibrationResult):
    """overlays/calibration-*.json: what was calibrated, tied to the core it holds for."""

    kind: Literal["calibration"] = "calibration"
    core: Sha256
    digest: Sha256


class PassTime(Strict):
    """Median seconds of one pass: graph ("segment_0", "exit_0", "head", "head_<name>", "embed"), rows, cache length."""

    graph: Name
    rows: Annotated[int, Field(ge=1, le=65536)]
    length: Annotated[int, Field(ge=0, le=c.MAX_CONTEXT)]
    seconds: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)]


class Profile(Strict):
    """overlays/profile-*.json: measured segment latencies of one device."""

    kind: Literal["profile"] = "profile"
    core: Sha256
    device: Name
    threads: Annotated[int, Field(ge=1, le=4096)]
    passes: Annotated[list[PassTime], Field(max_length=100_000)]
    digest: Sha256
