"""A chat template as a table, which a runtime without Jinja fills in: what is written between messages, by their roles.

A template is a program, so the table is not read off it but found out and proven by having it render conversations of
every order of roles, and messages of every kind that it may look at. One that is no such table is refused, with why.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise, product
from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.runtime.template import ChatTemplate, Message
from eecompile.runtime.text import readable
from eecompile.schema import Strict, Text

Roles = tuple[str, ...]
Short = Annotated[str, Field(max_length=c.MAX_CHAT_TEXT)]

_LONGEST = 4  # messages; beside these orders, two turns more, after a system's message and without one
_DAY = "\x02day"  # no template writes this by itself
_MOST_CONSTANTS = 64  # which are tried in pairs
_CONTENTS = (
    "", " ", "\n", "word", " two  words ", "\n\nlines\n\n", "\ttab", "no-break\u00a0", "{{ messages }}", "{% if %}",
    "'\"\\", "é漢🙂\u0301", "user", "<|x|>", "[X]", "</s>", "#", "1" * 300,
)  # fmt: skip


class ChatForm(Strict):
    """`between[a][b]`: what is written after a message of `a` and before one of `b`; conversations begin after "start"
    and end before "end", the assistant's turn. `stripped`: roles whose messages lose the white space around them.
    `special`: what the template looks for in messages; one that has it is not for this table.

    Where the template is no such table, `refused` says why and the rest is empty.
    """

    between: dict[str, dict[str, Text]] = Field(default_factory=dict)
    stripped: Annotated[list[str], Field(max_length=len(c.CHAT_ROLES))] = Field(default_factory=list)
    special: Annotated[list[Short], Field(max_length=c.MAX_CHAT_SPECIAL)] = Field(default_factory=list)
    refused: Text = ""

    @model_validator(mode="after")
    def _names_are_roles(self) -> Self:
        before, after = {c.CHAT_START, *c.CHAT_ROLES}, {c.CHAT_END, *c.CHAT_ROLES}
        if not set(self.between) <= before or any(not set(row) <= after for row in self.between.values()):
            raise ValueError("the table has a role that is none")
        if not set(self.stripped) <= set(c.CHAT_ROLES) or "" in self.special:
            raise ValueError("a role that is none is stripped, or every message is special")
        return self

    def allows(self, roles: Roles) -> bool:
        """Whether a conversation of these roles is in the table."""
        return all(b in self.between.get(a, {}) for a, b in pairwise((c.CHAT_START, *roles, c.CHAT_END)))

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation that it allows."""
        said = [m["content"].strip() if m["role"] in self.stripped else m["content"] for m in messages]
        roles = [m["role"] for m in messages]
        between = [self.between[a][b] for a, b in pairwise((c.CHAT_START, *roles, c.CHAT_END))]
        return "".join(part for pair in zip(between, [*said, ""], strict=True) for part in pair)


class _NoTable(Exception):
    """Why a template is none."""


def chat_form(template: ChatTemplate) -> ChatForm:
    """The template as a table, or why it is none. Cost: some thousand renderings."""
    probe = template.at(_DAY)
    try:
        _ = probe.constants  # or it is no Jinja
        form = _plain_table(probe)
        return form.model_copy(update={"special": _special(probe, form)})
    except (_NoTable, UsageError) as e:
        return ChatForm(refused=e.what if isinstance(e, UsageError) else str(e))


def _plain_table(template: ChatTemplate) -> ChatForm:
    between, seen = _between(template)
    form = ChatForm(between=between)
    stripped = [role for role in c.CHAT_ROLES if _strips(template, form, role, seen)]
    form = form.model_copy(update={"stripped": stripped})
    for roles in seen:
        for conversation in _with_each(roles, _CONTENTS):
            if _rendered(template, conversation) != form.render(conversation):
                changed = next(m for m in conversation if m["content"] in _CONTENTS)
                what = f"{changed['content'][:40]!a} of the {changed['role']}"
                raise _NoTable(f"it does something of its own with {what}")
    return form


def _between(template: ChatTemplate) -> tuple[dict[str, dict[str, str]], list[Roles]]:
    """What stands between roles, and the orders of roles that the template takes."""
    found: dict[str, dict[str, str]] = {}
    seen, not_taken = [], []
    for roles in _orders():
        text = _rendered(template, _conversation(roles))
        if text is None:
            not_taken.append(roles)
            continue
        seen.append(roles)
        pieces = _split(readable(text), roles)
        for (before, after), piece in zip(pairwise((c.CHAT_START, *roles, c.CHAT_END)), pieces, strict=True):
            if _DAY in piece:
                raise _NoTable("it says what day it is")
            if found.setdefault(before, {}).setdefault(after, piece) != piece:
                raise _NoTable(f"what it writes from {before} to {after} goes by more than these two")
    if not seen:
        raise _NoTable("it takes no conversation of a system, a user and an assistant")
    table = ChatForm(between=found)
    for roles in not_taken:
        if table.allows(roles):
            raise _NoTable(f"it does not take {', '.join(roles)} in this order, though any two of them")
    return found, seen


def _orders() -> Iterator[Roles]:
    """Orders of roles, the user last."""
    for length in range(_LONGEST):
        yield from ((*before, "user") for before in product(c.CHAT_ROLES, repeat=length))
    for first in ((), ("system",)):
        yield (*first, *("user", "assistant") * 3, "user")


def _conversation(roles: Roles) -> list[dict[str, str]]:
    return [{"role": role, "content": _mark(number)} for number, role in enumerate(roles)]


def _mark(number: int) -> str:
    """What the message with this number says: a word that no template has."""
    return f"Zq{number}Kx"


def _split(text: str, roles: Roles) -> list[str]:
    """What stands around the marks; they have to be there once each, in order."""
    pieces = []
    for number, role in enumerate(roles):
        piece, mark, text = text.partition(_mark(number))
        if not mark or _mark(number) in text:
            raise _NoTable(f"it leaves out, repeats, moves or changes what the {role} says")
        pieces.append(piece)
    return [*pieces, text]


def _rendered(template: ChatTemplate, conversation: Sequence[Message]) -> str | None:
    try:
        return template.render(conversation)
    except UsageError:
        return None


def _with_each(roles: Roles, contents: Sequence[str]) -> Iterator[list[dict[str, str]]]:
    """The conversation of marks, one message at a time saying each of `contents` in the place of its mark."""
    for number, role in enumerate(roles):
        for content in contents:
            conversation = _conversation(roles)
            conversation[number] = {"role": role, "content": content}
            yield conversation


def _strips(template: ChatTemplate, form: ChatForm, role: str, seen: Sequence[Roles]) -> bool:
    """Whether what a role says loses the white space around it; that it does so everywhere is checked later."""
    roles = next((roles for roles in seen if role in roles), None)
    if roles is None:
        return False
    conversation = _conversation(roles)
    conversation[roles.index(role)]["content"] = " \n x \n"
    return _rendered(template, conversation) != form.render(conversation)


def _special(template: ChatTemplate, form: ChatForm) -> list[str]:
    """Texts in quotes in the template for which it does something else when a message has them, one or two of them."""
    orders = [roles for roles in _SHORT if form.allows(roles)]
    words = [readable(word) for word in template.constants if word.strip()]
    if len(words) > _MOST_CONSTANTS or any(len(word) > c.MAX_CHAT_TEXT for word in words):
        raise _NoTable("it has more texts in quotes than can be tried")
    tells, last = _teller(template, form, orders), _teller(template, form, orders[-1:])
    special = [word for word in words if tells([word, f"x{word}", f"{word}x", f"x{word}y{word}z"])]
    for one, other in product(words, repeat=2):
        if one not in special and other not in special and last([f"{one}x{other}", one + other]):
            special.append(max(one, other, key=len))
    if len(special) > c.MAX_CHAT_SPECIAL:
        raise _NoTable("it looks for too many things in messages")
    return sorted(special)


_SHORT: Sequence[Roles] = (
    ("user",), ("system", "user"), ("user", "assistant", "user"), ("system", "user", "assistant", "user"),
)  # fmt: skip


def _teller(template: ChatTemplate, form: ChatForm, orders: Sequence[Roles]) -> Callable[[Sequence[str]], bool]:
    """A function that says whether the template does something else than the table with one of some contents."""

    def differs(conversation: Sequence[Mapping[str, str]]) -> bool:
        return _rendered(template, conversation) != form.render(conversation)

    return lambda contents: any(differs(one) for roles in orders for one in _with_each(roles, contents))
