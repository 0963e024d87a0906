"""One request: what was asked, what came of it, and what it cost."""

import operator
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import SupportsIndex

from eecompile.bundle.manifest import Manifest
from eecompile.errors import ContextFull, EECompileError, UsageError
from eecompile.runtime.decode import Continuation, Emitted
from eecompile.runtime.gates import GateState
from eecompile.runtime.heads import head_graph
from eecompile.runtime.rules import ExitRule, with_listeners
from eecompile.runtime.sampling import Sampling
from eecompile.runtime.source import first_tokens
from eecompile.runtime.staircase import Staircase
from eecompile.runtime.text import TextCodec
from eecompile.shapes import ExitShape

_GIVE_IDS = 'give token ids: --prompt-ids 1,2,3, or {"prompt_ids": [1, 2, 3]} on a line of a .jsonl file'


@dataclass(frozen=True)
class Limits:
    """cap: tokens that may be pending. budget: layer-rows a request may spend (None: any number)."""

    cap: int
    budget: int | None = None


@dataclass(frozen=True)
class Settings:
    """How requests run: mode, the rule of each of `exits` (none at all in full mode), limits, the rule for skipped
    layers."""

    mode: str
    rules: Sequence[ExitRule | None]
    limits: Limits
    exits: Sequence[ExitShape]
    kv: str = "catch_up"

    def continuation(self, stairs: Staircase, sampling: Sampling) -> Continuation:
        """A sequence that runs like this."""
        exact = self.mode == "exact"
        rules = with_listeners(self.rules or [None] * len(self.exits), self.exits)
        state = GateState(rules, sampling, free=exact)
        return Continuation(stairs, state, exact=exact, cap=self.limits.cap, kv=self.kv)


@dataclass(frozen=True)
class Token:
    """One emitted token: its id, the text it completes, and the layers that ran before it was emitted."""

    id: int
    text: str
    exit_layer: int


@dataclass
class Stats:
    """What a request cost. Seconds are wall time in here, not the caller's between tokens (of a batch: of the steps
    that the request was in); `layer_rows` counts its rows through layers, catch-up included, `segment_passes` the
    passes that it was in, `declined` heads that ran for an exit that did not fire, by graph."""

    prompt_tokens: int = 0
    tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    drafted: int = 0
    rejected: int = 0
    declined: Counter[str] = field(default_factory=Counter)
    segment_passes: int = 0
    layer_rows: int = 0
    exit_layers: Counter[int] = field(default_factory=Counter)
    stop_reason: str = ""

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed after the first token, which prefill pays for."""
        return (self.tokens - 1) / self.decode_seconds if self.tokens > 1 and self.decode_seconds else 0.0

    @property
    def heads_declined(self) -> int:
        """Heads that ran for an exit that did not fire."""
        return self.declined.total()

    @property
    def mean_depth(self) -> float:
        """Mean layers run before a token was emitted."""
        return sum(n * count for n, count in self.exit_layers.items()) / max(1, self.tokens)


class Request:
    """A prompt being continued. `ids`, `text` and `stats` are up to date after each token; `error` is why it failed.

    `stats.stop_reason` is "" until it is over: "stop", "length", "budget", "error" or "cancelled".
    Raises UsageError for an empty prompt or ids out of range, ContextFull where prompt and new tokens do not fit.
    """

    def __init__(
        self, manifest: Manifest, codec: TextCodec | None, settings: Settings, prompt_ids: list[int], *,
        max_new_tokens: int | None, sampling: Sampling, stop: Collection[int] | None, number: int = 0,
    ) -> None:  # fmt: skip
        self.number, self.prompt_ids, self.settings, self.sampling = number, prompt_ids, settings, sampling
        self.most = room(manifest, settings.limits, prompt_ids, max_new_tokens)
        self.ends = set(manifest.model.eos if stop is None else stop)
        self.stats = Stats(prompt_tokens=len(prompt_ids))
        self.ids: list[int] = []
        self.exit_layers: list[int] = []
        self.text = ""
        self.error: EECompileError | None = None
        self._layers = manifest.model.layers
        self._piece = codec.stream() if codec else (lambda token: "")

    @property
    def done(self) -> bool:
        """Whether there will be no more tokens."""
        return bool(self.stats.stop_reason)

    def take(self, token: Emitted) -> Token:
        """Note a token that became certain."""
        self.stats.tokens += 1
        self.stats.exit_layers[token.depth] += 1
        ended = token.id in self.ends
        self.stats.stop_reason = "stop" if ended else "length" if self.stats.tokens == self.most else ""
        piece = self._piece(token.id)
        self.ids.append(token.id)
        self.exit_layers.append(token.depth)
        self.text += piece
        return Token(token.id, piece, token.depth)

    def account(self, one: Continuation) -> None:
        """Note what the sequence has cost so far."""
        stats, counts = self.stats, one.counts
        stats.drafted, stats.rejected = counts.drafted, counts.rejected
        stats.declined = Counter({head_graph(name): n for name, n in one.state.declined.items()})
        stats.segment_passes, stats.layer_rows = one.stairs.passes, one.stairs.layer_rows

    def wants_flush(self, one: Continuation) -> bool:
        """Whether drafts fill the request, or would end it, so that they have to be verified at once."""
        return bool(one.drafts) and (len(one.drafts) >= self.most - self.stats.tokens or one.last in self.ends)

    def spent(self) -> bool:
        """Whether the next tokens, priced at full depth for as many as may be pending, could pass the budget."""
        limits = self.settings.limits
        if limits.budget is None:
            return False
        nothing_waits = self.settings.mode == "full" or self.settings.kv == "selected"
        reserve = (1 if nothing_waits else limits.cap + 1) * self._layers
        return self.stats.layer_rows + reserve > limits.budget


def prompt_ids(codec: TextCodec | None, prompt: str | Sequence[int]) -> list[int]:
    """Token ids of a prompt. Raises UsageError for text where the bundle has no tokenizer."""
    if isinstance(prompt, bytes | bytearray):
        raise UsageError("the prompt is bytes", mend="decode it to text, or give a list of token ids")
    if not isinstance(prompt, str):
        return [whole(t, "a token id") for t in prompt]
    if codec is None:
        raise no_tokenizer()
    return codec.encode(prompt)


def whole(value: SupportsIndex, what: str) -> int:
    """`value` as an int; raises UsageError naming `what` where it is not a whole number."""
    try:
        return operator.index(value)
    except TypeError as e:
        raise UsageError(f"{what} is a whole number, and {value!r} is not") from e


def room(manifest: Manifest, limits: Limits, ids: list[int], max_new_tokens: int | None) -> int:
    """How many tokens to generate; raises where the request cannot be served."""
    model, source = manifest.model, manifest.source
    if not ids:
        raise UsageError("the prompt is empty", mend="give at least one token")
    outside = [t for t in ids if not 0 <= t < model.vocab]
    if outside:
        raise UsageError(f"token id {outside[0]} is outside 0..{model.vocab - 1}", where="prompt")
    if max_new_tokens is not None and whole(max_new_tokens, "max_new_tokens") < 1:
        raise UsageError(f"max_new_tokens {max_new_tokens} is not positive")
    if source is not None and len(ids) > source.context:
        raise ContextFull(
            f"{len(ids)} tokens of source do not fit the context of {source.context}",
            mend=f"shorten the source, or build with --context {len(ids)}",
        )
    first = first_tokens(manifest, len(ids))
    left = model.context - first + 1
    wanted = left if max_new_tokens is None else max_new_tokens
    if left < 1 or wanted > left:
        asked = f" and {max_new_tokens} new tokens" if max_new_tokens else ""
        raise ContextFull(
            f"{first} prompt tokens{asked} do not fit the context of {model.context}",
            mend=f"shorten the prompt, ask for fewer tokens, or build with --context {first + (wanted or 1)}",
        )
    if limits.budget is not None and first * model.layers > limits.budget:
        raise UsageError(
            f"the prompt alone costs {first * model.layers} layer-rows, the budget is {limits.budget}",
            mend="shorten the prompt or raise the budget",
        )
    return wanted


def no_tokenizer() -> UsageError:
    """The fault of asking for text where the bundle has no tokenizer."""
    return UsageError("this bundle has no tokenizer", mend=_GIVE_IDS)
