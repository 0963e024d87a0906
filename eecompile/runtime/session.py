"""A session: requests, one sequence at a time, over an open bundle."""

import time
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.errors import UsageError
from eecompile.runtime.askers import ExitAsker
from eecompile.runtime.conditional import ConditionalDecoder, conditional_decoder, unfit
from eecompile.runtime.decode import Continuation, Decoder
from eecompile.runtime.gates import ExitGates
from eecompile.runtime.heads import Head, full_head, heads_by_name
from eecompile.runtime.request import Limits, Request, Settings, Stats, Token, no_tokenizer, prompt_ids
from eecompile.runtime.sampling import Sampling
from eecompile.runtime.sled import SledDecoder
from eecompile.runtime.staircase import LoadedGraphs, Staircase
from eecompile.runtime.template import Message
from eecompile.runtime.text import TextCodec

__all__ = ["Generation", "Limits", "Session", "Settings", "Stats", "Token"]


class Generation(Iterator[Token]):
    """Tokens as they become certain. `stats` is up to date after each; `ids` has what was emitted."""

    def __init__(self, tokens: Iterator[Token], request: Request) -> None:
        self._tokens, self.stats, self.prompt_ids = tokens, request.stats, request.prompt_ids
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
        self, manifest: Manifest, graphs: LoadedGraphs, text: TextCodec | None, settings: Settings,
        askers: list[ExitAsker], decision: str = "auto",
    ) -> None:  # fmt: skip
        self.manifest, self.mode, self.text = manifest, settings.mode, text
        self._settings, self._graphs, self._askers = settings, graphs, askers
        self._stairs = Staircase(manifest, graphs)
        self._current: Continuation | None = None
        heads = heads_by_name(manifest, graphs, manifest.pending_cap + 1)
        gates = ExitGates(manifest.exits, askers, heads)
        self._decoder = self._choose_decoder(decision, heads[c.FULL_HEAD], gates)

    @property
    def decision(self) -> str:
        """Who decides at exits: "conditional", the GPU, or "pinned", the host, by what it reads after each pass."""
        by_gpu = isinstance(self._decoder, ConditionalDecoder) and self._decoder.fault is None
        return "conditional" if by_gpu else "pinned"

    def generate(
        self, prompt: str | Sequence[int], *, max_new_tokens: int | None = None, sampling: Sampling | None = None,
        stop: Collection[int] | None = None,
    ) -> Generation:  # fmt: skip
        """Continue `prompt` (text or token ids), or, with an encoder-decoder, give the target for it.

        max_new_tokens: default as many as the context holds. stop: token ids that end the text, themselves emitted
        (default: the model's end-of-sequence ids). Raises UsageError for an empty prompt or ids out of range,
        ContextFull where prompt and new tokens do not fit, NumericError where the logits are not finite.
        """
        return self.continue_ids(prompt_ids(self.text, prompt), max_new_tokens, sampling or Sampling(), stop)

    def chat(
        self, messages: Sequence[Message], *, max_new_tokens: int | None = None, sampling: Sampling | None = None
    ) -> Generation:
        """Answer a conversation of {"role", "content"} messages, in the model's chat template."""
        if self.text is None:
            raise no_tokenizer()
        return self.continue_ids(self.text.encode_chat(messages), max_new_tokens, sampling or Sampling(), None)

    def continue_ids(
        self, ids: list[int], max_new_tokens: int | None, sampling: Sampling, stop: Collection[int] | None
    ) -> Generation:
        """As `generate`, for token ids."""
        request = Request(
            self.manifest, self.text, self._settings, ids, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop
        )
        one = self._settings.continuation(self._stairs, sampling)
        decoder: Decoder = self._sled if sampling.sled else self._decoder
        return Generation(self._run(decoder, one, request), request)

    def _choose_decoder(self, decision: str, head: Head, gates: ExitGates) -> Decoder:
        manifest, graphs, strict = self.manifest, self._graphs, decision == "conditional"
        why = unfit(manifest, graphs, self._settings)
        if why is None:
            return conditional_decoder(
                manifest, graphs, self._settings, self._stairs, self._askers, head, gates, strict=strict
            )
        if strict:
            raise UsageError(f"the GPU cannot decide here: {why}", mend="use --decision auto")
        return Decoder(head, gates, layers=manifest.model.layers)

    @cached_property
    def _sled(self) -> SledDecoder:
        if self.mode != "full":
            raise UsageError(f"SLED decodes at full depth, not in mode {self.mode}", mend="use mode full")
        if not self._askers:
            raise UsageError("SLED needs exits, and the bundle has none", mend="build it with --exits")
        head = full_head(self.manifest, self._graphs, len(self._askers) + 1)
        return SledDecoder(head, self._askers, layers=self.manifest.model.layers)

    def _run(self, decoder: Decoder, one: Continuation, request: Request) -> Iterator[Token]:
        self._current, stats = one, request.stats
        everything = range(len(self._askers))
        self._stairs.watch(self._askers, everything if request.sampling.sled else one.state.open_exits)
        began = time.perf_counter()
        first = self._stairs.begin(request.prompt_ids)
        self._stairs.prefill(first)
        one.last = first[-1]
        decoder.start([one])
        stats.prefill_seconds = time.perf_counter() - began
        while True:
            if one.fault:
                raise one.fault
            request.account(one)
            for token in one.certain:
                yield request.take(token)
                if request.done:
                    return
            if request.spent():
                stats.stop_reason = "budget"
                return
            if self._current is not one:
                raise UsageError(
                    "another request was started in this session",
                    mend="finish a request before the next, or make a session for each",
                )
            began = time.perf_counter()
            decoder.step([one])
            if request.wants_flush(one):
                decoder.flush([one])
            stats.decode_seconds += time.perf_counter() - began
