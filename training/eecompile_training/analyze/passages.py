"""What is measured on: documents as they are, or the model's own greedy continuation of how they begin."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from eecompile.calibrate.documents import Documents, Split, load_documents
from eecompile.errors import UsageError
from eecompile_training.analyze.subject import Subject
from eecompile_training.backbone import codec_of

PROMPT: Final = 32  # tokens of a document without a prompt that its continuation starts from
HELD: Final[tuple[Split, ...]] = ("path", "test")


@dataclass(frozen=True)
class Passage:
    """A sequence of tokens; what is said after those before `first` does not count."""

    ids: list[int]
    first: int


def read_passages(
    subject: Subject, path: Path, data: Path, *, limit: int, max_tokens: int
) -> tuple[Documents, list[Passage], list[Passage]]:
    """(the documents, those to fit on, those that are held out), split as `exits` and `calibrate` split them.

    Raises UsageError where fewer than two are held out.
    """
    documents = load_documents(data, max_tokens=max_tokens, limit=limit)
    codec = codec_of(path)

    def of(splits: Sequence[Split]) -> list[Passage]:
        stream = documents.stream(codec, vocab=subject.vocab, context=subject.context, splits=splits)
        return [Passage(d.ids, d.first) for d in stream]

    held = of(HELD)
    if len(held) < 2:
        mend = "give more documents, all different and not short; two thirds of them are held out"
        raise UsageError(f"{len(held)} documents to measure on, 2 are needed", where=str(data), mend=mend)
    return documents, of(["fit"]), held


def continuation(subject: Subject, passage: Passage, most: int) -> Passage | None:
    """The passage's prompt and what the model makes of it, greedily, in up to `most` tokens; the token after the
    prompt, which prefill gives, does not count. None where nothing is left to count."""
    prompt = passage.ids[: passage.first or PROMPT]
    room = min(most, subject.context - len(prompt))
    answer = subject.greedy(prompt, room) if room > 1 else []
    return Passage([*prompt, *answer[:-1]], len(prompt)) if len(answer) > 1 else None
