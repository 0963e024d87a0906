"""Classifying texts: batches of similar lengths walk down the segments, and what an exit is sure of leaves.

    batch = embed(texts)
    for each step of the schedule:
        run the segment on the rows that go on
        if the exit is open: ask it of them; what fires is answered and leaves the batch
    ask the head of what is left

Per text ("sentence") a text leaves with all of its rows: where each token has a label of its own, once every one of its
tokens fires. Per token a row leaves alone, and deeper layers project its key and value from the state it left with.
Either way a row whose gate said continue goes on, and no row waits for another.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.errors import NumericError, UsageError
from eecompile.runtime.encode import EncoderBatch
from eecompile.runtime.labels import AskedExit, ClassRule, Said, probabilities
from eecompile.runtime.staircase import LoadedGraphs
from eecompile.runtime.texts import EncodedText, TextEncoder, TextInput

BATCH = 32
Bools = NDArray[np.bool_]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class TokenLabel:
    """A token's label. start, end: its characters in its text (None for token ids); pair: 1 in the second of a pair."""

    id: int
    text: str
    start: int | None
    end: int | None
    pair: int
    label: str
    scores: list[float]
    exit_layer: int


@dataclass(frozen=True)
class Classification:
    """What a text was classified as. scores: probabilities in the order of the labels (a regression: its value).

    exit_layer: layers that were run before it was answered. tokens: where each token has a label; then `label` is "",
    `scores` are empty, and exit_layer is that of the deepest token (special tokens are not among them).
    """

    label: str
    scores: list[float]
    exit_layer: int
    tokens: list[TokenLabel] | None = None


@dataclass
class ClassifyStats:
    """What a request cost. layer_rows: rows through layers that were computed; frozen_rows: that only gave keys."""

    texts: int = 0
    tokens: int = 0
    seconds: float = 0.0
    passes: int = 0
    layer_rows: int = 0
    frozen_rows: int = 0
    exit_layers: Counter[int] = field(default_factory=Counter)

    @property
    def mean_depth(self) -> float:
        """Mean layers before an answer: of texts, or of tokens where each has a label."""
        return sum(n * count for n, count in self.exit_layers.items()) / max(1, self.exit_layers.total())


@dataclass(frozen=True)
class BatchAnswers:
    """Logits [U, C] and exit layers [U] of a batch's units: its texts, or its rows where each token has a label."""

    logits: NDArray[np.float32]
    depth: NDArray[np.int64]


class Classifier:
    """Classifies texts in one mode. Thread-safe. `Bundle.classifier` makes one and checks what it may do.

    rules: per exit, None where it is closed. per_token: rows leave alone.
    """

    def __init__(
        self, manifest: Manifest, graphs: LoadedGraphs, encoder: TextEncoder, rules: Sequence[ClassRule | None], *,
        per_token: bool = False, compaction: bool = True, budget: int | None = None,
    ) -> None:  # fmt: skip
        self.manifest, self.encoder = manifest, encoder
        self._graphs, self._rules, self._budget = graphs, list(rules), budget
        self.per_token, self._compaction = per_token, compaction
        self._labels_tokens = manifest.task == c.TOKENS
        self._asked = [AskedExit(engine, manifest.task) for engine in graphs.exits]
        self._head = AskedExit(graphs.head, manifest.task)

    def classify(
        self, texts: Sequence[TextInput], batch: int = BATCH, *, progress: Progress = lambda done: None
    ) -> list[Classification]:
        """Classify texts, pairs of texts, or lists of token ids, in the order they are given.

        batch: texts that go down together; they are sorted by length, since a batch's attention is as long as its
        longest. progress: called with the number of texts that are done. Raises UsageError and ContextFull for inputs
        that cannot be encoded, NumericError where the logits are not finite.
        """
        return self.run(texts, batch, progress=progress)[0]

    def run(
        self, texts: Sequence[TextInput], batch: int = BATCH, *, progress: Progress = lambda done: None
    ) -> tuple[list[Classification], ClassifyStats]:
        """As `classify`, with what it cost."""
        if batch < 1:
            raise UsageError(f"batch {batch} is not a positive number of texts")
        began, stats = time.perf_counter(), ClassifyStats()
        encoded = self.encoder.encode(texts)
        self._admit(encoded)
        found: list[Classification | None] = [None] * len(encoded)
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            answers = self.answer([encoded[i] for i in chosen], stats)
            for i, one in zip(chosen, self._named([encoded[i] for i in chosen], answers), strict=True):
                found[i] = one
            progress(start + len(chosen))
        results = [one for one in found if one is not None]
        stats.texts, stats.tokens = len(encoded), sum(len(text.ids) for text in encoded)
        for result in results:
            stats.exit_layers.update([result.exit_layer] if result.tokens is None else _depths(result.tokens))
        stats.seconds = time.perf_counter() - began
        return results, stats

    def answer(self, texts: Sequence[EncodedText], stats: ClassifyStats | None = None) -> BatchAnswers:
        """Walk one batch down; adds its passes to `stats`."""
        walk = EncoderBatch(self.manifest, self._graphs, texts)
        units = len(walk.text) if self._labels_tokens else len(texts)
        answers = BatchAnswers(
            np.zeros((units, self.manifest.classes), np.float32), np.full(units, self.manifest.model.layers)
        )
        going, before = np.ones(len(walk.text), np.bool_), np.full(units, np.nan, np.float32)
        for step in self.manifest.schedule:
            walk.run(step.segment, going, compaction=self._compaction)
            if step.exit is not None and any(rule is not None for rule in self._rules[step.exit :]):
                going = self._leave(walk, step.exit, going, answers, before)
                if not going.any():
                    break
        left = self._units(walk, going)
        if len(left):
            answers.logits[left] = self._finish(walk, left)
        if stats is not None:
            stats.passes += walk.counts.passes
            stats.layer_rows += walk.counts.layer_rows
            stats.frozen_rows += walk.counts.frozen_rows
        return answers

    def _leave(
        self, walk: EncoderBatch, exit_: int, going: Bools, answers: BatchAnswers, before: NDArray[np.float32]
    ) -> Bools:
        """Ask an exit of the units that go on and answer those that fire; returns the rows that go on then."""
        rule, units = self._rules[exit_], self._units(walk, going)
        if rule is None and self.manifest.task != "regression":
            return going
        said = self._asked[exit_](self._states(walk, units), rule, before[units])
        if self.manifest.task == "regression":
            before[units] = said.logits[:, 0]
        if rule is None or not said.fires.any():
            return going
        fired = units[self._fired(walk, units, said)]
        answers.logits[fired] = said.logits[np.isin(units, fired)]
        answers.depth[fired] = self.manifest.exits[exit_].layer
        return self._without(walk, going, fired)

    def _fired(self, walk: EncoderBatch, units: NDArray[np.int64], said: Said) -> Bools:
        """Which of `units` leave: those whose gate fired, but a text's tokens only all together unless per token."""
        if not self._labels_tokens or self.per_token:
            return said.fires
        unsure = np.zeros(len(walk.first), np.bool_)
        unsure[walk.text[units[~said.fires & ~walk.special[units]]]] = True
        whole: Bools = ~unsure[walk.text[units]]
        return whole

    def _without(self, walk: EncoderBatch, going: Bools, fired: NDArray[np.int64]) -> Bools:
        """The rows that go on when `fired` have left. A text that only has special tokens left is done."""
        if not self._labels_tokens:
            return going & ~np.isin(walk.text, fired)
        after = going.copy()
        after[fired] = False
        unanswered = np.zeros(len(walk.first), np.bool_)
        unanswered[walk.text[after & ~walk.special]] = True
        continuing: Bools = after & unanswered[walk.text]
        return continuing

    def _units(self, walk: EncoderBatch, going: Bools) -> NDArray[np.int64]:
        return np.flatnonzero(going) if self._labels_tokens else np.flatnonzero(going[walk.first])

    def _states(self, walk: EncoderBatch, units: NDArray[np.int64]) -> NDArray[np.float32]:
        states: NDArray[np.float32] = walk.hidden[units if self._labels_tokens else walk.first[units]]
        return states

    def _finish(self, walk: EncoderBatch, units: NDArray[np.int64]) -> NDArray[np.float32]:
        logits = self._head(self._states(walk, units), None, None).logits
        if not np.isfinite(logits).all():
            mend = "check the checkpoint's weights with `eecompile verify`; float16 weights may overflow"
            raise NumericError("the model's logits are not finite", mend=mend)
        return logits

    def _admit(self, texts: Sequence[EncodedText]) -> None:
        """A text is priced at full depth before it runs."""
        longest = max((len(text.ids) for text in texts), default=0)
        price = longest * self.manifest.model.layers
        if self._budget is not None and price > self._budget:
            what = f"a text of {longest} tokens may take {price} layer-rows, more than the budget of {self._budget}"
            raise UsageError(what, mend="shorten it, or raise the budget: `eecompile policy BUNDLE set --budget N`")

    def _named(self, texts: Sequence[EncodedText], answers: BatchAnswers) -> list[Classification]:
        """Answers with their labels, one a text."""
        regression = self.manifest.task == "regression"
        scores = answers.logits.astype(np.float64) if regression else probabilities(answers.logits)
        best = [self.manifest.labels[i] for i in scores.argmax(axis=1).tolist()]
        rows, depth = scores.tolist(), answers.depth.tolist()
        if not self._labels_tokens:
            return [Classification(best[i], rows[i], depth[i]) for i in range(len(texts))]
        named, start = [], 0
        for text in texts:
            tokens = [
                _token(text, i, best[start + i], rows[start + i], depth[start + i])
                for i in range(len(text.ids))
                if not text.special[i]
            ]
            deepest = max((t.exit_layer for t in tokens), default=max(depth[start : start + len(text.ids)]))
            named.append(Classification("", [], deepest, tokens))
            start += len(text.ids)
        return named


def _token(text: EncodedText, i: int, label: str, scores: list[float], depth: int) -> TokenLabel:
    start, end = text.spans[i] if text.spans is not None else (None, None)
    pair = int(text.second is not None and text.second[i])
    return TokenLabel(text.ids[i], text.piece(i), start, end, pair, label, scores, depth)


def _depths(tokens: Sequence[TokenLabel]) -> list[int]:
    return [token.exit_layer for token in tokens]


def check_task(manifest: Manifest) -> None:
    """Raise UsageError for a bundle that generates text."""
    if manifest.task == c.CAUSAL_LM:
        raise UsageError("this bundle generates text", mend="use `bundle.session()` and `session.generate(...)`")
