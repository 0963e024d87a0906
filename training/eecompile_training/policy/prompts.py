"""Prompts: the beginnings of documents, in the splits that calibration makes of the same documents."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from eecompile.calibrate.documents import Split, split_of
from eecompile.calibrate.records import Record, read_records
from eecompile.errors import UsageError
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.source import first_tokens
from eecompile_training.policy.settings import PromptsConfig

_CHARACTERS_PER_TOKEN: Final = 32
_SPLITS: Final[dict[Split, str]] = {"fit": "to train on", "path": "for validation", "test": "held out"}


@dataclass(frozen=True)
class Prompt:
    """Token ids, and what was to follow as text where the document says so."""

    ids: tuple[int, ...]
    target: str | None = None


@dataclass(frozen=True)
class Prompts:
    """Prompts to train on, to choose the best gates by, and to report on."""

    train: Sequence[Prompt]
    validation: Sequence[Prompt]
    held_out: Sequence[Prompt]


def load_prompts(config: PromptsConfig, bundle: Bundle, tokens: int) -> Prompts:
    """The prompts of all files, each once, that leave room for so many new tokens in the context.

    Raises UsageError where a split has none, and as `read_records` does.
    """
    found: dict[Split, list[Prompt]] = {split: [] for split in _SPLITS}
    for split, prompt in _read(config, bundle):
        if first_tokens(bundle.manifest, len(prompt.ids)) + tokens <= bundle.manifest.model.context:
            found[split].append(prompt)
    for split, purpose in _SPLITS.items():
        if not found[split]:
            raise UsageError(
                f"the documents give no prompt {purpose}", where=str(config.files[0]), mend="give more documents"
            )
    return Prompts(found["fit"], found["path"][: config.validation], found["test"][: config.held_out])


def prompts_of_step(count: int, wanted: int, seed: int, step: int) -> list[int]:
    """The numbers of the prompts that step `step` plays: each once an epoch, in an order of the epoch's own."""
    places = [divmod(place, count) for place in range(step * wanted, (step + 1) * wanted)]
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(count) for epoch, _ in places}
    return [int(orders[epoch][i]) for epoch, i in places]


def _read(config: PromptsConfig, bundle: Bundle) -> Iterator[tuple[Split, Prompt]]:
    seen: set[bytes] = set()
    for file in config.files:
        counts: Counter[str] = Counter()
        for record in read_records(file):
            if record.digest in seen or (config.limit is not None and counts["read"] >= config.limit):
                continue
            seen.add(record.digest)
            counts["read"] += 1
            if ids := _ids(record, config, bundle):
                target = record.target if isinstance(record.target, str) else None
                yield split_of(record.digest), Prompt(tuple(ids), target)


def _ids(record: Record, config: PromptsConfig, bundle: Bundle) -> list[int]:
    """A document's own prompt, or its first tokens."""
    own = record.content if record.target is not None else record.prompt
    content = record.content if own is None else own
    most = config.prompt_tokens if own is None else bundle.manifest.model.context
    if not isinstance(content, str):
        if outside := [t for t in content if not 0 <= t < bundle.manifest.model.vocab]:
            raise UsageError(f"token id {outside[0]} is not in the vocabulary", where=record.where)
        return list(content[:most])
    if bundle.text is None:
        mend = 'give token ids: {"ids": [1, 2, ...]} a line of a .jsonl file'
        raise UsageError("the documents are text and the bundle has no tokenizer", where=record.where, mend=mend)
    return bundle.text.encode(content[: most * _CHARACTERS_PER_TOKEN])[:most]
