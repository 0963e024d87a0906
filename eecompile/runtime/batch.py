"""A batch: requests that run side by side, joining and leaving between steps.

    batch = bundle.batch(slots=8, mode="confident")
    for prompt in prompts:
        batch.add(prompt, max_new_tokens=64)
    while batch.busy:
        for request, token in batch.step():
            print(request.number, token.text)

Every request gives what a session of its own would give. A step is one engine pass a segment for all of them, or a few
where they wait far apart (plan.py). Requests wait for a free slot in the order they came in. A prompt is run a chunk
a step, so that a long one holds up the others by no more than a prefill pass.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.errors import UsageError
from eecompile.runtime.askers import ExitAsker
from eecompile.runtime.decode import Continuation, Decoder
from eecompile.runtime.gates import ExitGates
from eecompile.runtime.heads import heads_by_name
from eecompile.runtime.request import Request, Settings, Token, prompt_ids, room
from eecompile.runtime.sampling import Sampling
from eecompile.runtime.staircase import LoadedGraphs, Pool, Staircase
from eecompile.runtime.text import TextCodec

Emissions: TypeAlias = list[tuple[Request, Token]]


@dataclass
class _Live:
    """A request that has a slot. `first`: the tokens that it starts with, of which `fed` were run."""

    request: Request
    one: Continuation
    first: list[int]
    fed: int = 0

    @property
    def started(self) -> bool:
        return self.fed == len(self.first)


class Batch:
    """Requests over the slots of one pool. Not thread-safe: batches and sessions of a bundle are, from each other.

    settings: makes a request's settings of what `add` was given in place of the batch's own.
    Memory: in each slot the K/V cache of the longest sequence.
    """

    def __init__(
        self, manifest: Manifest, graphs: LoadedGraphs, codec: TextCodec | None, settings: Callable[..., Settings],
        askers: list[ExitAsker], *, slots: int, each_pass: float,
    ) -> None:  # fmt: skip
        self.manifest, self.codec, self.pool = manifest, codec, Pool(manifest, graphs, slots, each_pass)
        self._graphs, self._settings, self._askers = graphs, settings, askers
        self._own = settings()
        rows = slots * (manifest.pending_cap + 1)
        heads = heads_by_name(manifest, graphs, rows)
        self._decoder = Decoder(
            heads[c.FULL_HEAD], ExitGates(manifest.exits, askers, heads), layers=manifest.model.layers
        )
        self._queue: deque[Request] = deque()
        self._live: list[_Live] = []
        self._count = 0

    @property
    def busy(self) -> bool:
        """Whether any request is not done."""
        return bool(self._live or self._queue)

    @property
    def free(self) -> int:
        """Slots that no request has or waits for."""
        return max(0, len(self.pool.slots) - len(self._live) - len(self._queue))

    def add(
        self, prompt: str | Sequence[int], *, max_new_tokens: int | None = None, sampling: Sampling | None = None,
        stop: Collection[int] | None = None, mode: str | None = None, minimum_depth: int | None = None,
        budget: int | None = None,
    ) -> Request:  # fmt: skip
        """Queue a request; it runs from the next step on that has a slot for it.

        As Session.generate. mode, minimum_depth, budget: of this request, in place of the batch's own.
        Raises UsageError, ContextFull, Uncalibrated as a session would.
        """
        if sampling is not None and sampling.sled:
            raise UsageError("SLED does not run in batches", mend="use a session: bundle.session(mode='full')")
        own = {"mode": mode, "minimum_depth": minimum_depth, "budget": budget}
        changed = {name: value for name, value in own.items() if value is not None}
        settings = self._settings(**changed) if changed else self._own
        request = Request(
            self.manifest, self.codec, settings, prompt_ids(self.codec, prompt), max_new_tokens=max_new_tokens,
            sampling=sampling or Sampling(), stop=stop, number=self._count,
        )  # fmt: skip
        self._count += 1
        self._queue.append(request)
        return request

    def check(self, ids: list[int], max_new_tokens: int | None) -> None:
        """Raise UsageError or ContextFull where `add` would for a prompt of these ids; nothing is queued."""
        room(self.manifest, self._own.limits, ids, max_new_tokens)

    def cancel(self, request: Request) -> None:
        """End a request of this batch; what it has so far stays in it. Raises UsageError for one of another batch."""
        if request.done:
            return
        if not any(other is request for other in (*self._queue, *(live.request for live in self._live))):
            raise UsageError("the request is not of this batch", mend="cancel it where it was added")
        request.stats.stop_reason = "cancelled"
        self._queue = deque(other for other in self._queue if other is not request)
        self._release()

    def step(self) -> Emissions:
        """Run a chunk of the prompts that are not through yet, then one token of every other sequence.

        Returns the tokens that became certain, each with its request. A request that fails ends with an `error`; the
        others go on.
        """
        self._admit()
        ready = [live for live in self._live if live.started]
        emitted = self._prefill([live for live in self._live if not live.started])
        emitted += self._decode(ready)
        self._release()
        return emitted

    def run(self) -> Iterator[tuple[Request, Token]]:
        """Step until nothing is left to do."""
        while self.busy:
            yield from self.step()

    def _admit(self) -> None:
        while self._queue and len(self._live) < len(self.pool.slots):
            request = self._queue.popleft()
            stairs = Staircase(self.manifest, self._graphs, self.pool)
            one = request.settings.continuation(stairs, request.sampling)
            stairs.watch(self._askers, one.state.open_exits)
            self._live.append(_Live(request, one, self.pool.take_up(request.prompt_ids)))
        while self.pool.close_gap():
            pass

    def _prefill(self, joining: list[_Live]) -> Emissions:
        """A chunk of each prompt, in all no more than a prefill pass; returns the first tokens that came of it."""
        if not joining:
            return []
        began = time.perf_counter()
        joining = joining[: self.pool.prefill_rows]
        share = self.pool.prefill_rows // len(joining)
        chunks = [live.first[live.fed : live.fed + share] for live in joining]
        stairs = [live.one.stairs for live in joining]
        self.pool.embed(stairs, chunks)
        for k in range(len(self.pool.schedule)):
            self.pool.run_step(k, stairs)
        for live, chunk in zip(joining, chunks, strict=True):
            live.fed += len(chunk)
        through = [live for live in joining if live.started]
        self._decoder.start([live.one for live in through])
        seconds = time.perf_counter() - began
        for live in joining:
            live.request.stats.prefill_seconds += seconds
        return self._collect(through)

    def _decode(self, ready: list[_Live]) -> Emissions:
        if not ready:
            return []
        began = time.perf_counter()
        self._decoder.step([live.one for live in ready])
        self._decoder.flush([live.one for live in ready if live.request.wants_flush(live.one)])
        seconds = time.perf_counter() - began
        for live in ready:
            live.request.stats.decode_seconds += seconds
        return self._collect(ready)

    def _collect(self, those: list[_Live]) -> Emissions:
        """Hand out what became certain, and note which requests are over."""
        emitted: Emissions = []
        for live in those:
            request, one = live.request, live.one
            request.account(one)
            if one.fault is not None:
                request.error, request.stats.stop_reason = one.fault, "error"
                continue
            for token in one.certain:
                emitted.append((request, request.take(token)))
                if request.done:
                    break
            if not request.done and request.spent():
                request.stats.stop_reason = "budget"
        return emitted

    def _release(self) -> None:
        """Take finished requests out of their slots."""
        for live in self._live:
            if live.request.done:
                live.one.stairs.leave()
        self._live = [live for live in self._live if not live.request.done]


def run_all(batch: Batch, prompts: Iterable[str | Sequence[int]], **options: object) -> Iterator[Request]:
    """Run every prompt in `batch`, with its slots kept full, and yield each request when it is done.

    options: as Batch.add's, for all of them. Prompts are drawn as slots fall free, so that there may be any number.
    """
    source, running = iter(prompts), list[Request]()
    while True:
        while batch.free and (prompt := next(source, None)) is not None:
            running.append(batch.add(prompt, **options))  # type: ignore[arg-type]
        if not running:
            return
        batch.step()
        yield from [request for request in running if request.done]
        running = [request for request in running if not request.done]
