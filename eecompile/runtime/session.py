"""A session: requests, one sequence at a time, over an open bundle."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from eecompile.bundle.manifest import Manifest
from eecompile.errors import ContextFull, UsageError
from eecompile.runtime.decode import Decoder, Emitted
from eecompile.runtime.heads import ExitAsker, ExitRule, Head
from eecompile.runtime.sampling import Sampling
from eecompile.runtime.staircase import LoadedGraphs, Staircase
from eecompile.runtime.text import Message, TextCodec


@dataclass(frozen=True)
class Limits:
    """cap: tokens that may be pending. budget: layer-rows a request may spend (None: any number)."""

    cap: int
    budget: int | None = None


@dataclass(frozen=True)
class Token:
    """One emitted token: its id, the text it completes, and the layers that ran before it was emitted."""

    id: int
    text: str
    exit_layer: int


@dataclass
class Stats:
    """What a request cost. Seconds are wall time in here, not the caller's between tokens; `layer_rows` counts rows
    through layers, catch-up included."""

    prompt_tokens: int = 0
    tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    drafted: int = 0
    rejected: int = 0
    heads_declined: int = 0
    segment_passes: int = 0
    layer_rows: int = 0
    exit_layers: Counter[int] = field(default_factory=Counter)
    stop_reason: str = ""

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed after the first token, which prefill pays for."""
        return (self.tokens - 1) / self.decode_seconds if self.tokens > 1 and self.decode_seconds else 0.0

    @property
    def mean_depth(self) -> float:
        """Mean layers run before a token was emitted."""
        return sum(n * count for n, count in self.exit_layers.items()) / max(1, self.tokens)


class Generation(Iterator[Token]):
    """Tokens as they become certain. `stats` is up to date after each; `ids` has what was emitted."""

    def __init__(self, tokens: Iterator[Token], stats: Stats, prompt_ids: list[int]) -> None:
        self._tokens, self.stats, self.prompt_ids = tokens, stats, prompt_ids
        self.ids: list[int] = []

    def __next__(self) -> Token:
        token = next(self._tokens)
        self.ids.append(token.id)
        return token


class Session:
    """Generates one sequence at a time in one mode. Not thread-safe: sessions of a bundle are, from each other.

    Memory: the K/V cache of one sequence, resident as far as it was used.
    """

    def __init__(
        self, manifest: Manifest, graphs: LoadedGraphs, text: TextCodec | None, mode: str,
        rules: list[ExitRule | None], askers: list[ExitAsker], limits: Limits,
    ) -> None:  # fmt: skip
        model = manifest.model
        self.manifest, self.mode, self.text = manifest, mode, text
        self._rules, self._askers, self._limits = rules, askers, limits
        self._stairs = Staircase(manifest, graphs)
        self._stairs.watch(askers, {rule.exit for rule in rules if rule is not None})
        self._current: Decoder | None = None
        self._head = Head(graphs.head, model.hidden, model.vocab, manifest.pending_cap + 1, manifest.minimum_rows)

    def generate(
        self, prompt: str | Sequence[int], *, max_new_tokens: int | None = None, sampling: Sampling | None = None,
        stop: Collection[int] | None = None,
    ) -> Generation:  # fmt: skip
        """Continue `prompt` (text or token ids).

        max_new_tokens: default as many as the context holds. stop: token ids that end the text, themselves emitted
        (default: the model's end-of-sequence ids). Raises UsageError for an empty prompt or ids out of range,
        ContextFull where prompt and new tokens do not fit, NumericError where the logits are not finite.
        """
        ids = self._encode(prompt) if isinstance(prompt, str) else [int(t) for t in prompt]
        return self.continue_ids(ids, max_new_tokens, sampling or Sampling(), stop)

    def chat(
        self, messages: Sequence[Message], *, max_new_tokens: int | None = None, sampling: Sampling | None = None
    ) -> Generation:
        """Answer a conversation of {"role", "content"} messages, in the model's chat template."""
        if self.text is None:
            raise _no_tokenizer()
        return self.continue_ids(self.text.encode_chat(messages), max_new_tokens, sampling or Sampling(), None)

    def continue_ids(
        self, ids: list[int], max_new_tokens: int | None, sampling: Sampling, stop: Collection[int] | None
    ) -> Generation:
        """As `generate`, for token ids."""
        most = self._room(ids, max_new_tokens)
        stats = Stats(prompt_tokens=len(ids))
        decoder = Decoder(
            self._stairs, self._head, self._askers, self._rules or [None] * len(self._askers),
            layers=self.manifest.model.layers, exact=self.mode == "exact", cap=self._limits.cap, sampling=sampling,
        )  # fmt: skip
        ends = set(self.manifest.model.eos if stop is None else stop)
        text = self.text.stream() if self.text else (lambda token: "")
        return Generation(self._run(decoder, ids, most, ends, text, stats), stats, ids)

    def _run(
        self, decoder: Decoder, ids: list[int], most: int, ends: set[int], text: Callable[[int], str], stats: Stats
    ) -> Iterator[Token]:
        self._current = decoder
        began = time.perf_counter()
        certain = [decoder.start(ids)]
        stats.prefill_seconds = time.perf_counter() - began
        while True:
            self._account(stats, decoder)
            for token in certain:
                stats.tokens += 1
                stats.exit_layers[token.depth] += 1
                ended = token.id in ends
                stats.stop_reason = "stop" if ended else "length" if stats.tokens == most else ""
                yield Token(token.id, text(token.id), token.depth)
                if stats.stop_reason:
                    return
            if self._spent(stats):
                stats.stop_reason = "budget"
                return
            if self._current is not decoder:
                raise UsageError(
                    "another request was started in this session",
                    mend="finish a request before the next, or make a session for each",
                )
            began = time.perf_counter()
            certain = self._advance(decoder, ends, most - stats.tokens)
            stats.decode_seconds += time.perf_counter() - began

    def _advance(self, decoder: Decoder, ends: set[int], left: int) -> list[Emitted]:
        """Steps until a token is certain. Drafts that fill the request, or would end it, are verified at once."""
        while True:
            certain = decoder.step()
            if not certain and (decoder.unverified >= left or decoder.last in ends):
                certain = decoder.flush()
            if certain:
                return certain

    def _account(self, stats: Stats, decoder: Decoder) -> None:
        stats.drafted, stats.rejected = decoder.counts.drafted, decoder.counts.rejected
        stats.heads_declined = decoder.counts.declined
        stats.segment_passes, stats.layer_rows = decoder.stairs.passes, decoder.stairs.layer_rows

    def _spent(self, stats: Stats) -> bool:
        """Whether the next tokens, priced at full depth for as many as may be pending, could pass the budget."""
        if self._limits.budget is None:
            return False
        reserve = (1 if self.mode == "full" else self._limits.cap + 1) * self.manifest.model.layers
        return stats.layer_rows + reserve > self._limits.budget

    def _encode(self, prompt: str) -> list[int]:
        if self.text is None:
            raise _no_tokenizer()
        return self.text.encode(prompt)

    def _room(self, ids: list[int], max_new_tokens: int | None) -> int:
        """How many tokens to generate; raises where the request cannot be served."""
        model = self.manifest.model
        if not ids:
            raise UsageError("the prompt is empty", mend="give at least one token")
        outside = [t for t in ids if not 0 <= t < model.vocab]
        if outside:
            raise UsageError(f"token id {outside[0]} is outside 0..{model.vocab - 1}", where="prompt")
        if max_new_tokens is not None and max_new_tokens < 1:
            raise UsageError(f"max_new_tokens {max_new_tokens} is not positive")
        room = model.context - len(ids) + 1
        wanted = room if max_new_tokens is None else max_new_tokens
        if room < 1 or wanted > room:
            asked = f" and {max_new_tokens} new tokens" if max_new_tokens else ""
            raise ContextFull(
                f"{len(ids)} prompt tokens{asked} do not fit the context of {model.context}",
                mend=f"shorten the prompt, ask for fewer tokens, or build with --context {len(ids) + (wanted or 1)}",
            )
        if self._limits.budget is not None and len(ids) * model.layers > self._limits.budget:
            raise UsageError(
                f"the prompt alone costs {len(ids) * model.layers} layer-rows, the budget is {self._limits.budget}",
                mend="shorten the prompt or raise the budget",
            )
        return wanted


def _no_tokenizer() -> UsageError:
    return UsageError("this bundle has no tokenizer", mend="give token ids (--prompt-ids 1,2,3)")
