"""Mails as structured extraction: a prompt that shows a shortened mail, a completion that is JSON of what stands in it.

Every completion is computed from its prompt by Python's mail parser and by regular expressions, so each value stands
literally in the prompt. Which of the fixed schemas a mail is asked for, and which split it belongs to, follows from the
hash of its body: mails of the same body are in one split.
"""

import hashlib
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from email.utils import parseaddr
from pathlib import Path
from typing import Final, TypeAlias

from encoder_inputs import messages_of, plain_text
from tokenizers import Tokenizer

from eecompile.calibrate.documents import share_of

SPLITS: Final = {"fit": 0.5, "calibrate": 0.3, "heldout": 0.2}
PROMPT_TOKENS: Final = 200  # most of a prompt, in the tokenizer's tokens
COMPLETION_TOKENS: Final = 120
MOST_VALUES: Final = 4  # of a list
_HEADER_CHARACTERS: Final = 160
_BODY_CHARACTERS: Final = 8000  # what of a body is looked at
_OPENING_LINES: Final = 3
_LINE_WORDS: Final = 40
_SHORTEST_BODY: Final = 40

Value: TypeAlias = "str | list[str] | None"
_ADDRESS: Final = re.compile(r"[A-Za-z0-9][\w.+-]*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}")
_HOST: Final = re.compile(r"(?:https?|ftp)://([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+)|\b(www(?:\.[A-Za-z0-9-]+){2,})")
_AMOUNT: Final = re.compile(r"(?:[$€£]|\b(?:USD|EUR|GBP) ?)\d+(?:,\d{3})*(?:\.\d+)?(?: ?(?:million|billion))?(?!\w)")
_PHONE: Final = re.compile(r"(?<![\w.-])(?:\+?\d{1,3}[ .-])?(?:\(\d{2,4}\) ?|\d{2,4}[ .-])\d{3,4}[ .-]\d{3,5}(?![\w-])")
_TAGS: Final = re.compile(r"(?is)<(script|style|head)\b.*?</\1\s*>|<!--.*?-->|<[^>]*>")


@dataclass(frozen=True)
class Mail:
    """What is shown of a mail: its headers, whole, and as much of the body's excerpt as fits."""

    sender: str
    date: str
    subject: str
    body: str

    @property
    def text(self) -> str:
        """As it stands in a prompt."""
        return f"From: {self.sender}\nDate: {self.date}\nSubject: {self.subject}\n\n{self.body}"


def _found(pattern: re.Pattern[str]) -> Callable[[Mail], Value]:
    def values(mail: Mail) -> Value:
        matches = ("".join(filter(None, m.groups())) or m[0] for m in pattern.finditer(mail.body))
        return list(dict.fromkeys(matches))[:MOST_VALUES]

    return values


FIELDS: Final[Mapping[str, Callable[[Mail], Value]]] = {
    "name": lambda mail: parseaddr(mail.sender)[0] or None,
    "address": lambda mail: parseaddr(mail.sender)[1] or None,
    "date": lambda mail: mail.date,
    "subject": lambda mail: mail.subject,
    "emails": _found(_ADDRESS),
    "hosts": _found(_HOST),
    "amounts": _found(_AMOUNT),
    "phones": _found(_PHONE),
}
SCHEMAS: Final[Sequence[Sequence[str]]] = (
    ("name", "address", "date", "subject"),
    ("name", "address", "emails", "hosts", "phones"),
    ("date", "subject", "amounts", "phones"),
    ("address", "subject", "hosts", "emails"),
    tuple(FIELDS),
)


def write_extraction(archive: Path, tokenizer: Path, out: Path) -> None:
    """fit.jsonl, calibrate.jsonl and heldout.jsonl of the SpamAssassin corpus (PDDL), {"prompt", "completion"} a line.

    tokenizer: a tokenizer.json, by which a prompt has at most 200 tokens. Left out are a prompt that occurred before,
    one of whose values does not stand in it as it is (a name with escaped quotes), and a very long completion.
    """
    counts, seen = _counter(tokenizer), set[str]()
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    for _, message in messages_of(archive):
        if (mail := shortened(message, digest := body_digest(message), counts)) is None:
            continue
        prompt, completion = example(mail, schema_of(digest))
        if prompt not in seen and is_literal(prompt, completion) and counts(completion) <= COMPLETION_TOKENS:
            seen.add(prompt)
            line = json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False)
            lines[share_of(digest, SPLITS)].append(line + "\n")
    for split, found in lines.items():
        (out / f"{split}.jsonl").write_text("".join(found), encoding="utf-8")


def example(mail: Mail, schema: Sequence[str]) -> tuple[str, str]:
    """Prompt and completion. A field that the mail lacks is null, or an empty list."""
    prompt = f"Extract {', '.join(schema)} from the mail as JSON.\n\n{mail.text}\n\nJSON:\n"
    values = {name: FIELDS[name](mail) for name in schema}
    return prompt, json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def is_literal(prompt: str, completion: str) -> bool:
    """Whether every value of the completion stands in the prompt."""
    values = json.loads(completion).values()
    return all(v in prompt for value in values for v in (value if isinstance(value, list) else [value or ""]))


def shortened(message: Message, digest: bytes, counts: Callable[[str], int]) -> Mail | None:
    """The mail with as much of its excerpt as its prompt has room for; None if a header or the body is missing or not
    readable."""
    sender, date, subject = (_header(message, name) for name in ("From", "Date", "Subject"))
    words = re.findall(r"\s*\S+", excerpt(body_of(message)))
    if not (sender and date and subject) or sum(map(len, words)) < _SHORTEST_BODY:
        return None
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        mail = Mail(sender, date, subject, "".join(words[:middle]).strip())
        fits = counts(example(mail, schema_of(digest))[0]) <= PROMPT_TOKENS
        low, high = (middle, high) if fits else (low, middle - 1)
    return Mail(sender, date, subject, "".join(words[:low]).strip()) if low else None


def excerpt(body: str) -> str:
    """The first three lines of a body and those after them that hold an address, host, amount or phone number; all
    lines where there is none. A long line is cut after 40 words."""
    lines = [" ".join(line.split(" ")[:_LINE_WORDS]) for line in body[:_BODY_CHARACTERS].split("\n")]
    patterns = (_ADDRESS, _HOST, _AMOUNT, _PHONE)
    telling = [line for line in lines[_OPENING_LINES:] if any(p.search(line) for p in patterns)]
    return "\n".join([*lines[:_OPENING_LINES], *(telling or lines[_OPENING_LINES:])])


def body_of(message: Message) -> str:
    """The plain text of a mail, or that of its HTML where there is none, without empty lines or runs of spaces."""
    text = plain_text(message) or html.unescape(_TAGS.sub(" ", plain_text(message, "text/html")))
    lines = (" ".join("".join(c for c in line if c.isprintable() or c == "\t").split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def body_digest(message: Message) -> bytes:
    """SHA-256 of the letters of a body, so that copies that differ in spaces, case or numbers have the same."""
    return hashlib.sha256("".join(filter(str.isalpha, body_of(message)[:_BODY_CHARACTERS].lower())).encode()).digest()


def schema_of(digest: bytes) -> Sequence[str]:
    """The fields that a mail of this digest is asked for."""
    return SCHEMAS[int.from_bytes(digest[8:16], "big") % len(SCHEMAS)]


def _header(message: Message, name: str) -> str:
    """A header on one line, its encoded words decoded; empty where it is missing, unreadable or too long."""
    try:
        text = str(make_header(decode_header(str(message.get(name, "")))))
    except (HeaderParseError, LookupError, UnicodeError, ValueError):
        return ""
    line = " ".join(text.split())
    usable = len(line) <= _HEADER_CHARACTERS and line.isprintable() and "\ufffd" not in line
    return line if usable else ""


def _counter(tokenizer: Path) -> Callable[[str], int]:
    encoder = Tokenizer.from_file(str(tokenizer))
    return lambda text: len(encoder.encode(text, add_special_tokens=False).ids)
