"""Text in and out of a session: the tokenizer, the chat template, and streaming that never splits a character."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from eecompile.errors import UsageError
from eecompile.runtime.template import Message, read_template


class TextCodec:
    """A bundle's tokenizer. Thread-safe."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self._template = read_template(directory)

    @property
    def chat_template(self) -> str | None:
        """The template's text, if there is one."""
        return None if self._template is None else self._template.source

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` with the tokenizer's own special tokens (a leading BOS where it has one)."""
        return list(self.tokenizer.encode(readable(text)).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation in the model's chat template, ready for the assistant's turn."""
        if self._template is None:
            raise UsageError("this model has no chat template", mend="give the prompt as plain text")
        text = readable(self._template.render(messages))
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def stream(self) -> Callable[[int], str]:
        """A function from each next id to the text that it completes ("" inside a character)."""
        decoder, tokenizer = DecodeStream(skip_special_tokens=True), self.tokenizer
        return lambda token: decoder.step(tokenizer, token) or ""


def readable(text: str) -> str:
    """`text`; raises UsageError where it holds what was not UTF-8 (lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise UsageError(f"the text is not UTF-8 at character {e.start}", mend="decode it by its own encoding") from e
    return text
