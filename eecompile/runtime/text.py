"""Text in and out of a session: the tokenizer, the chat template, and streaming that never splits a character."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from eecompile.errors import UsageError

Message = Mapping[str, str]


class TextCodec:
    """A bundle's tokenizer. Thread-safe."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self._config = _json(directory / "tokenizer_config.json")
        self.chat_template = _template(directory, self._config)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` with the tokenizer's own special tokens (a leading BOS where it has one)."""
        return list(self.tokenizer.encode(readable(text)).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation in the model's chat template, ready for the assistant's turn."""
        if self.chat_template is None:
            raise UsageError("this model has no chat template", mend="give the prompt as plain text")
        special = {k: _content(v) for k, v in self._config.items() if k.endswith("_token")}
        try:
            template = _environment().from_string(self.chat_template)
            text = template.render(messages=list(messages), add_generation_prompt=True, **special)
        except Exception as e:  # a template is the checkpoint's own program and may raise anything
            raise UsageError(f"the chat template fails: {e}", mend="give the prompt as plain text") from e
        return list(self.tokenizer.encode(readable(text), add_special_tokens=False).ids)

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


def _environment() -> ImmutableSandboxedEnvironment:
    def fail(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = fail
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _template(directory: Path, config: Mapping[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = named[0].get("template") if named else None
    if template is not None and not isinstance(template, str):
        raise UsageError("its chat_template is not text", where=str(directory / "tokenizer_config.json"))
    return template


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}
