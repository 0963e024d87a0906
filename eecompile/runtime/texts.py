"""Texts in and spans out of a classifier: token ids, kinds, special tokens, and where each token stands in its text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer

from eecompile.bundle.manifest import Manifest
from eecompile.errors import ContextFull, UsageError
from eecompile.runtime.text import TextCodec, readable

TextInput = str | tuple[str, str] | Sequence[int]


@dataclass(frozen=True)
class EncodedText:
    """A text of n tokens as the model reads it.

    types: the kind of each token (0 without kinds). special: tokens that the tokenizer added and that stand for no
    text. spans: [start, end) of each token in its text, in characters; None for token ids. second: tokens of the second
    text of a pair.
    """

    ids: list[int]
    types: list[int]
    special: list[bool]
    spans: list[tuple[int, int]] | None = None
    second: list[bool] | None = None
    text: tuple[str, str] | None = None

    def piece(self, token: int) -> str:
        """What token number `token` stands for in the text; its id where there is no text."""
        if self.spans is None or self.text is None or self.second is None:
            return str(self.ids[token])
        start, end = self.spans[token]
        return self.text[self.second[token]][start:end]


class TextEncoder:
    """Encodes texts, pairs of texts and token ids for one bundle. Thread-safe."""

    def __init__(self, manifest: Manifest, codec: TextCodec | None, *, truncate: bool = False) -> None:
        self._model, self._types = manifest.model, manifest.encoder.types if manifest.encoder else 0
        self._truncate, self._tokenizer = truncate, None if codec is None else codec.tokenizer
        if truncate and codec is not None:
            self._tokenizer = Tokenizer.from_str(codec.tokenizer.to_str())
            self._tokenizer.enable_truncation(self._model.context)

    def encode(self, given: Sequence[TextInput]) -> list[EncodedText]:
        """All of them. Raises UsageError for text without a tokenizer, ids outside the vocabulary and an input without
        tokens; ContextFull for one longer than the context, unless texts are to be truncated."""
        texts = [g for g in given if not _is_ids(g)]
        if texts and self._tokenizer is None:
            raise UsageError("this bundle has no tokenizer", mend="give token ids: --prompt-ids 1,2,3")
        for part in (part for text in texts for part in ((text,) if isinstance(text, str) else text)):
            readable(str(part))
        found = self._tokenizer.encode_batch(texts) if self._tokenizer is not None and texts else []
        encodings: Iterator[Encoding] = iter(found)
        encoded = [self._from_ids(g) if _is_ids(g) else self._from_text(g, next(encodings)) for g in given]
        for number, text in enumerate(encoded):
            self._check(text, number, len(given))
        return encoded

    def _from_ids(self, ids: TextInput) -> EncodedText:
        tokens = [int(t) for t in ids]
        outside = [t for t in tokens if not 0 <= t < self._model.vocab]
        if outside:
            raise UsageError(f"token id {outside[0]} is outside 0..{self._model.vocab - 1}")
        if self._truncate:
            tokens = tokens[: self._model.context]
        return EncodedText(tokens, [0] * len(tokens), [False] * len(tokens))

    def _from_text(self, text: TextInput, e: Encoding) -> EncodedText:
        pair = (text, "") if isinstance(text, str) else (str(text[0]), str(text[1]))
        types = [min(t, self._types - 1) for t in e.type_ids] if self._types else [0] * len(e.ids)
        return EncodedText(
            list(e.ids), types, [bool(s) for s in e.special_tokens_mask], list(e.offsets),
            [s == 1 for s in e.sequence_ids], pair,
        )  # fmt: skip

    def _check(self, text: EncodedText, number: int, count: int) -> None:
        where = f"text {number + 1} of {count}" if count > 1 else ""
        if not text.ids:
            raise UsageError("the text has no tokens", where=where, mend="give at least one token")
        if len(text.ids) > self._model.context:
            raise ContextFull(
                f"a text of {len(text.ids)} tokens does not fit the context of {self._model.context}", where=where,
                mend="split it, or let its end be cut off: --truncate, `classifier(truncate=True)`",
            )  # fmt: skip


def _is_ids(given: TextInput) -> bool:
    return not isinstance(given, str) and not any(isinstance(part, str) for part in given)
