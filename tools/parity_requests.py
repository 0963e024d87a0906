"""The requests that both runtimes are given of one bundle: modes, rules, open exits, sampling, limits, batches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import tiny_encoder
import tiny_kinds
from parity_runs import Prompt, Run, described

from eecompile import contract as c
from eecompile.errors import EECompileError
from eecompile.runtime import Bundle
from eecompile.schema import Thresholds

SHARE = 0.7  # of the tokens, that a gate lets on
SAMPLING: Mapping[str, Sequence[object]] = {
    "greedy": (),
    "top-p": ("--temperature", 0.8, "--top-p", 0.95, "--seed", 7),
    "top-k": ("--temperature", 1.3, "--top-k", 20, "--seed", 8),
    "all tokens": ("--temperature", 0.6, "--seed", 9),
}


@dataclass(frozen=True)
class Ask:
    """What to ask of a decoder. model: what it is counted under. document: ids to find thresholds on; source: those of
    an encoder-decoder's source. tokens: to generate. few: three runs in place of all. calibrate: take new
    thresholds in place of the bundle's own."""

    model: str
    prompts: list[Prompt]
    document: list[int]
    tokens: int
    source: list[int] | None = None
    few: bool = False
    calibrate: bool = True


def random_ids(seed: int, count: int, vocab: int = tiny.VOCAB) -> dict[str, list[int]]:
    """A prompt of random ids."""
    return {"prompt_ids": np.random.default_rng(seed).integers(0, vocab, count).tolist()}


# -- decoders -----------------------------------------------------------------------------------------------------


class _Decoder:
    """A bundle and what is asked of it, as runs."""

    def __init__(self, path: Path, ask: Ask) -> None:
        self._opened, self._ask, self._next = Bundle.open(path, integrity="size"), ask, 0
        self.manifest, self.drafts = self._opened.manifest, dict[int, Any]()
        if ask.calibrate and self.manifest.exits:
            self.drafts = tiny_kinds.thresholds_of(self._opened, SHARE, ask.document, ask.source)
            for rule in reversed(self.manifest.kv_rules):
                self._opened = tiny.calibrate(path, list(self.drafts.values()), rule)

    def confident(self, rule: str) -> bool:
        """Whether mode confident runs with this rule."""
        try:
            self._opened.session(mode="confident", kv=rule)
        except EECompileError:
            return False
        return bool(self.manifest.exits)

    def run(
        self, mode: str, sampling: str, *words: object, kv: str | None = None, only: int | None = None,
        batch: int | None = None, also: str = "",
    ) -> Run:  # fmt: skip
        """A run with the next prompt, or all of them side by side. only: the one exit that is open, by number."""
        layers = [info.layer for info in self.manifest.exits]
        closed = [f"{layer}=never" for i, layer in enumerate(layers) if only not in (None, i)]
        said = ["--mode", mode, "--max-new-tokens", self._ask.tokens, *SAMPLING[sampling], *words]
        said += ["--kv", kv] if kv else []
        said += [word for pair in (*closed, *self._thresholds(mode, only)) for word in ("--threshold", pair)]
        prompts = self._ask.prompts
        if batch is None:
            prompts = [prompts[self._next % len(prompts)]]
            self._next += 1
        about = {"model": [self._ask.model], **described(self.manifest, mode, None if only is None else [only])}
        about |= {"skipped layers": [kv or c.KV_RULES[0]] if mode != "full" else [], "choice": [sampling]}
        about |= {"besides": ["side by side"] * (batch is not None) + [also] * bool(also)}
        return Run(self._opened.files.path, prompts, list(map(str, said)), batch, self.manifest.model.layers, about)

    def _thresholds(self, mode: str, only: int | None) -> list[str]:
        if mode != "exact":
            return []
        drafts = [item for i, item in enumerate(self.drafts.items()) if only in (None, i)]
        return [f"{layer}:{gate}={value!r}" for layer, gates in drafts for gate, value in gates.items()]


def decoder_runs(path: Path, ask: Ask) -> Iterator[Run]:
    """All that is asked of the decoder, or encoder-decoder, at `path`."""
    made = _Decoder(path, ask)
    rules = [rule for rule in made.manifest.kv_rules if made.confident(rule)]
    yield made.run("full", "top-k")
    yield made.run("exact", "greedy")
    yield from (made.run("confident", "top-p", kv=rule) for rule in (rules[:1] if not ask.few else rules))
    if not ask.few:
        yield made.run("full", "greedy")
        yield from _more(made, rules)
        yield from _side_by_side(made, rules)


def _more(made: _Decoder, rules: Sequence[str]) -> Iterator[Run]:
    exits, layers = made.manifest.exits, made.manifest.model.layers
    yield made.run("exact", "top-p", "--pending-cap", 3, also="pending cap")
    yield made.run("exact", "all tokens", "--budget", layers * 150, also="budget")
    for rule in rules:
        yield made.run("confident", "greedy", kv=rule)
        yield made.run("confident", "top-k", "--pending-cap", 2, kv=rule, also="pending cap")
    if rules[:1] == [c.KV_RULES[0]]:
        yield made.run("confident", "greedy", "--minimum-depth", exits[0].layer + 1, kv=rules[0], also="minimum depth")
    if len({tuple(e.gates) for e in exits}) > 1:
        for number in range(len(exits)):
            yield made.run("exact", "greedy", only=number)
            yield from (made.run("confident", "top-p", kv=rule, only=number) for rule in rules[:1])
    if exits:
        yield made.run("full", "greedy", "--sled", also="SLED")
        yield made.run("full", "top-p", "--sled", "--sled-rate", 1.5, also="SLED")


def _side_by_side(made: _Decoder, rules: Sequence[str]) -> Iterator[Run]:
    slots = made.manifest.slots
    if slots > 1 or made.manifest.source is not None:
        yield made.run("full", "greedy", batch=slots)
        yield made.run("exact", "top-p", batch=slots)
        yield from (made.run("confident", choice, kv=r, batch=slots) for r in rules for choice in ("greedy", "top-k"))


# -- classifiers --------------------------------------------------------------------------------------------------


def classifier_runs(
    opened: Bundle, root: Path, model: str, prompts: list[Prompt], batches: Sequence[int], *, calibrate: bool = True
) -> Iterator[Run]:  # fmt: skip
    """Modes full and confident of an encoder, per text and per token, in batches of each size and alone. Calibrated
    copies of the bundle are made under `root`."""
    for granularity, kv in c.GRANULARITIES.items():
        own = opened
        if calibrate and kv in opened.manifest.kv_rules:
            own = tiny_encoder.calibrated(opened, root / granularity, kv, _passed(opened, granularity))
        for mode in c.CLASSIFY_MODES:
            try:
                own.classifier(mode, granularity=granularity)
            except EECompileError:
                continue
            about = {"model": [model], **described(opened.manifest, mode), "leaves": [granularity]}
            words = ["--mode", mode, "--granularity", granularity, "--truncate"]
            layers = opened.manifest.model.layers
            for batch in batches:
                many = about | {"besides": ["side by side"] * (batch > 1)}
                yield Run(own.files.path, prompts, words, batch, layers, many)
            yield from (Run(own.files.path, [prompt], words, None, layers, about) for prompt in prompts[:3])


def _passed(opened: Bundle, granularity: str) -> list[Thresholds]:
    """Thresholds that half of the answers pass, or nearly all where a text waits for all of its tokens."""
    waits = opened.manifest.task == c.TOKENS and granularity == "sentence"
    found: list[Thresholds] = tiny_encoder.passed_by(opened, 0.97 if waits else 0.5)
    return found
