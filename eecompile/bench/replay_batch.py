"""The decoder's loop over the letters of several documents side by side: which passes a batch would make.

The replay is that of runtime/decode.py over runtime/pool.py, for the rule catch_up: each token leaves where its own
exit fires, what goes on shares passes by runtime/plan.py, and what has left may ride along. Prompts are not in it: a
document that joins has been through them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from eecompile import contract as c
from eecompile.bench.cost_model import Setting
from eecompile.bundle.manifest import Manifest
from eecompile.runtime.heads import head_graph
from eecompile.runtime.plan import Waiting, plan_passes, riders
from eecompile.runtime.rules import listeners


@dataclass
class _Sequence:
    """One document. waiting: its rows by boundary, the last of them finished. early: tokens since the last one from
    full depth. drafts: whether each is right, and the step that it left after. walks: its token has not left."""

    letters: str
    tokens: int
    waiting: list[int]
    slot: int = 0
    position: int = 0
    early: int = 0
    drafts: list[tuple[bool, int]] = field(default_factory=list)
    walks: bool = False


class BatchReplay:
    """`slots` documents at a time, the next one where one has ended.

    setting: how they run. patience: the threshold of each exit that goes by it. each_pass: as of Pool. passes: by
    (graph, slots, rows of each). depths: emitted tokens by the step that they left after (exact mode: were drafted
    after). steps: of the batch. Raises ValueError for exits with a layer of their own, whose rows it does not follow.
    """

    def __init__(
        self, manifest: Manifest, documents: Iterable[str], open_exits: set[int], setting: Setting, *, exact: bool,
        slots: int, each_pass: float, patience: Sequence[float | None] | None = None,
    ) -> None:  # fmt: skip
        if any(info.adapter == "layer" for info in manifest.exits):
            raise ValueError("exits with a layer of their own are not replayed in batches")
        heard, self._votes = listeners(patience or [None] * len(manifest.exits), manifest.exits, sorted(open_exits))
        asked = open_exits | heard | self._votes
        self.passes: Counter[tuple[str, int, int]] = Counter()
        self.depths: Counter[int] = Counter()
        self.drafted = self.rejected = self.steps = 0
        self._asked = [step.exit if step.exit in asked else None for step in manifest.schedule]
        self._segments = [f"segment_{step.segment}" for step in manifest.schedule]
        self._heads = [head_graph(info.head) for info in manifest.exits]
        self._open, self._exact, self._cap, self._each = open_exits, exact, setting.cap, each_pass
        self._least = setting.minimum_rows
        self._most = max(setting.prefill_rows, setting.cap + 1, self._least, slots)
        self._queue: Iterator[str] = (letters for letters in documents if len(letters) >= len(self._heads))
        self._places: list[_Sequence | None] = [None] * slots

    def run(self, steps: int | None = None) -> None:
        """Go on for so many steps (None: until every document has ended)."""
        while self.steps != steps:
            self._admit()
            those = [one for one in self._places if one is not None]
            if not those:
                return
            self.steps += 1
            self._step(those)
            self._flush([one for one in those if one.position >= one.tokens and one.drafts])
            for one in those:
                if one.position >= one.tokens and not one.drafts:
                    self._places[one.slot] = None

    def _admit(self) -> None:
        """Fill free slots from the lowest on, then close gaps as Pool.close_gap does."""
        for slot, there in enumerate(self._places):
            letters = next(self._queue, None) if there is None else None
            if letters is not None:
                tokens = len(letters) // len(self._heads)
                self._places[slot] = _Sequence(letters, tokens, [0] * (len(self._segments) + 1))
        live = [one for one in self._places if one is not None]
        for slot in range(len(live)):
            if self._places[slot] is None:
                highest = max(i for i, one in enumerate(self._places) if one is not None)
                self._places[slot], self._places[highest] = self._places[highest], None
        for slot, one in enumerate(self._places):
            if one is not None:
                one.slot = slot

    def _step(self, those: list[_Sequence]) -> None:
        """Decoder.step."""
        self.passes["embed", 1, len(those)] += 1
        for one in those:
            one.waiting[0] += 1
            one.position += 1
            one.walks = True
        walking, riding = those, list[_Sequence]()
        for k, exit_ in enumerate(self._asked):
            riding = self._riding(k, walking, [one for one in those if not one.walks])
            self._run(k, [*walking, *riding])
            if exit_ is not None:
                self._ask(k, exit_, [one for one in walking if one.early < self._cap])
                walking = [one for one in walking if one.walks]
                if not walking:
                    return
        self._finish([*walking, *riding])

    def _flush(self, those: list[_Sequence]) -> None:
        """Decoder.flush."""
        for k in range(len(self._segments)) if those else ():
            self._run(k, [one for one in those if one.waiting[k]])
        self._finish(those)

    def _riding(self, k: int, walking: list[_Sequence], left: list[_Sequence]) -> list[_Sequence]:
        others = [one for one in left if one.waiting[k]]
        together = riders(self._rows(k, walking), self._rows(k, others), self._each, self._most)
        return others if together else []

    def _rows(self, k: int, those: list[_Sequence]) -> Waiting:
        return tuple(sorted((one.slot, max(one.waiting[k], self._least)) for one in those))

    def _run(self, k: int, those: list[_Sequence]) -> None:
        for first, last, rows in plan_passes(self._rows(k, those), self._each, self._most)[0]:
            self.passes[self._segments[k], last - first, rows] += 1
        for one in those:
            rows, one.waiting[k] = one.waiting[k], 0
            one.waiting[k + 1] += rows

    def _ask(self, k: int, exit_: int, asked: list[_Sequence]) -> None:
        """Those that leave walk no longer."""
        if not asked:
            return
        self.passes[f"exit_{exit_}", 1, len(asked)] += 1
        said = [one.letters[(one.position - 1) * len(self._heads) + exit_] for one in asked]
        let_on = [exit_ in self._open and letter != "." for letter in said]
        rows = sum(opens or exit_ in self._votes for opens in let_on)
        if rows:
            self.passes[self._heads[exit_], 1, rows] += 1
        for one, letter, opens in zip(asked, said, let_on, strict=True):
            if opens and letter != "h":
                self._emit(one, letter == "a", k)

    def _emit(self, one: _Sequence, right: bool, k: int) -> None:
        one.walks = False
        one.early += 1
        if self._exact:
            self.drafted += 1
            one.drafts.append((right, k))
        else:
            self.depths[k] += 1

    def _finish(self, those: list[_Sequence]) -> None:
        """Decoder._finish: riders are verified where they were drafts; otherwise nobody asks for them."""
        rows = sum(one.waiting[-1] if self._exact else one.walks for one in those)
        if rows:
            self.passes[head_graph(c.FULL_HEAD), 1, rows] += 1
        for one in those:
            finished, one.waiting[-1] = one.waiting[-1], 0
            if self._exact:
                self._verify(one, finished)
            elif one.walks:
                self.depths[len(self._segments) - 1] += 1
                one.early = 0
            one.walks = False

    def _verify(self, one: _Sequence, finished: int) -> None:
        """Decoder._verify: keep drafts up to the first wrong one, in whose place stands the full model's token."""
        judged = one.drafts[:finished]
        kept = next((i for i, (right, _) in enumerate(judged) if not right), len(judged))
        self.depths.update(k for _, k in judged[:kept])
        if kept == finished:
            one.drafts = one.drafts[kept:]
            one.early = len(one.drafts)
            return
        self.depths[len(self._segments) - 1] += 1
        self.rejected += len(one.drafts) - kept
        if kept < len(one.drafts):  # what followed the wrong one is rolled back
            one.position += kept + 1 - len(one.drafts) - one.walks
            one.waiting = [0] * len(one.waiting)
        one.drafts, one.early = [], 0
