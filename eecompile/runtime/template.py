"""A model's chat template: Jinja that came with the checkpoint, in a sandbox."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from eecompile.errors import UsageError

Message = Mapping[str, str]


def _now(form: str) -> str:
    return datetime.now().strftime(form)


@dataclass(frozen=True)
class ChatTemplate:
    """What makes one text of a conversation. Thread-safe. special: tokens that it knows by name, as `bos_token`. now:
    what `strftime_now` gives for a format."""

    source: str
    special: Mapping[str, Any]
    now: Callable[[str], str] = _now

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation, ready for the assistant's turn. Raises UsageError where the template fails."""
        try:
            return self._compiled.render(messages=list(messages), add_generation_prompt=True, **self.special)
        except Exception as e:  # a template is the checkpoint's own program and may raise anything
            raise UsageError(f"the chat template fails: {e}", mend="give the prompt as plain text") from e

    def at(self, day: str) -> "ChatTemplate":
        """The same template when `strftime_now` gives `day`, whatever it is asked for."""
        return replace(self, now=lambda form: day)

    @cached_property
    def _compiled(self) -> Template:
        return _environment(self.now).from_string(self.source)

    @cached_property
    def constants(self) -> list[str]:
        """Every text that stands in quotes in the template. Raises UsageError where it is no Jinja."""
        try:
            tree = _environment(self.now).parse(self.source)
        except TemplateError as e:
            raise UsageError(f"the chat template fails: {e}", mend="give the prompt as plain text") from e
        return sorted({node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)})


def read_template(directory: Path) -> ChatTemplate | None:
    """The chat template among a tokenizer's files; None where there is none. Raises UsageError where it is no text."""
    config = _json(directory / "tokenizer_config.json")
    source = _source(directory, config)
    special = {k: _content(v) for k, v in config.items() if k.endswith("_token")}
    return None if source is None else ChatTemplate(source, special)


def _environment(now: Callable[[str], str]) -> ImmutableSandboxedEnvironment:
    def fail(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = fail
    environment.globals["strftime_now"] = now
    return environment


def _source(directory: Path, config: Mapping[str, Any]) -> str | None:
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
