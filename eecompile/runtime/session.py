"""A session: requests, one sequence at a time, over an open bundle."""

import time
from collections.abc import Collection, Iterator, Sequence

from eecompile.bundle.manifest import Manifest
from eecompile.errors import UsageError
from eecompile.runtime.decode import Continuation, Decoder
from eecompile.runtime.heads import ExitAsker, Head
from eecompile.runtime.request import Limits, Request, Settings, Stats, Token, no_tokenizer, prompt_ids
from eecompile.runtime.sampling import Sampling
from eecompile.runtime.staircase import LoadedGraphs, Staircase
from eecompile.runtime.text import Message, TextCodec

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
        askers: list[ExitAsker],
    ) -> None:  # fmt: skip
        model = manifest.model
        self.manifest, self.mode, self.text = manifest, settings.mode, text
        self._settings = settings
        self._stairs = Staircase(manifest, graphs)
        self._current: Continuation | None = None
        head = Head(graphs.head, model.hidden, model.vocab, manifest.pending_cap + 1, manifest.minimum_rows)
        self._decoder = Decoder(head, askers, layers=model.layers)

    def generate(
        self, prompt: str | Sequence[int], *, max_new_tokens: int | None = None, sampling: Sampling | None = None,
        stop: Collection[int] | None = None,
    ) -> Generation:  # fmt: skip
        """Continue `prompt` (text or token ids).

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
        one = self._settings.continuation(self._stairs, sampling, len(self.manifest.exits))
        return Generation(self._run(one, request), request)

    def _run(self, one: Continuation, request: Request) -> Iterator[Token]:
        self._current, stats = one, request.stats
        began = time.perf_counter()
        self._stairs.reset()
        self._stairs.prefill(request.prompt_ids)
        self._decoder.start([one])
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
            self._decoder.step([one])
            if request.wants_flush(one):
                self._decoder.flush([one])
            stats.decode_seconds += time.perf_counter() - began
