"""Texts of every kind for a tokenizer to disagree about: as bytes, some of them no UTF-8."""

import json
import pydoc_data.topics
import random
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

BLOCK = 64  # code points of one script or so lie together
SURROGATES = range(0xD800, 0xE000)
POINTS = [c for c in range(0x110000) if c not in SURROGATES]
ASSIGNED = [c for c in POINTS if unicodedata.category(chr(c)) not in ("Cn", "Co")]
SPACES = [
    " ",
    "  ",
    "\t",
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    " \n",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\u2028",
    "\u0085",
    "\u200b",
    "▁",
]
WORDS = ["don't", "I'LL", "we've", "it'ſ", "x'd", "NAÏVE", "straße", "İstanbul", "ﬁne", "e\u0301", "12345", "3.14",
         "²³", "٣٤", "१२", "漢字", "かな", "한국어", "한", "🙂", "👩\u200d👩\u200d👧", "🇩🇪", "##ing", "<0x41>", "http://a.b/c?d=e",
         "foo_bar(x)", "\u0915\u094d\u0937", "กำ", "…", "«»", "‽", "$€", "a\u0345\u0301\u0316",
         "\u1100\u1161\u11a8"]  # fmt: skip

CLUSTERS = [*"\u1100\u1161\u11a8가각\ua960\u0915\u094d\u093c\u0930\u0d15\u0d4d\u200d\u200c©®❤\ufe0f🙂🏽🇩🇪"
            "\u0600\u0d4e\u0300\u0301\u0e33\u00ad\u0903\r\n\u0001a é\U00011133\U00011103"
            "\U00016d63\U000110bd\u1019\u1039"]  # fmt: skip


def source_texts() -> list[str]:
    """English and code, a line each."""
    topics = "\n".join(pydoc_data.topics.topics.values())
    code = Path(json.__file__).read_text(encoding="utf-8") + Path(random.__file__).read_text(encoding="utf-8")
    return [line for line in (topics + code).splitlines() if line.strip()]


def texts(seed: int, count: int, special: Sequence[str] = ()) -> list[bytes]:
    """`count` texts, the same each time; `special`: added tokens to strew in."""
    rng = random.Random(seed)
    lines = source_texts()
    kinds: list[Callable[[], bytes]] = [
        lambda: "\n".join(rng.sample(lines, rng.randint(1, 4))).encode(),
        lambda: _mixed(rng, lines, special).encode(),
        lambda: _mixed(rng, lines, special).encode(),
        lambda: _block(rng).encode(),
        lambda: "".join(chr(rng.choice(ASSIGNED)) for _ in range(rng.randint(1, 20))).encode(),
        lambda: "".join(chr(rng.choice(POINTS)) for _ in range(rng.randint(1, 20))).encode(),
        lambda: _broken(rng, _mixed(rng, lines, special).encode()),
        lambda: rng.randbytes(rng.randint(1, 30)),
        lambda: "".join(rng.choice("ab \n'.,1\r\t") for _ in range(rng.randint(1, 30))).encode(),
        lambda: "".join(rng.choice(CLUSTERS) for _ in range(rng.randint(1, 20))).encode(),
        lambda: (rng.choice([*WORDS, *SPACES, "a", "."]) * rng.randint(1, 60)).encode(),
    ]
    return [b"", b" ", b"\n", b"a", *special_texts(special)][:count] + [kinds[i % len(kinds)]() for i in range(count)]


def special_texts(special: Sequence[str]) -> list[bytes]:
    """Each added token alone, doubled, in a word, cut short, between spaces."""
    found = [t for s in special for t in (s, s + s, f"a{s}b", s[:-1], f"  {s}  ", f"\n{s}\ta", s.upper(), s.lower())]
    return [text.encode() for text in found]


def every_point(step: int, points: Sequence[int] = POINTS) -> list[bytes]:
    """All of `points`, `step` a text, alternately among letters and among themselves."""
    groups = [points[i : i + step] for i in range(0, len(points), step)]
    return [("a" if i % 2 else "").join(chr(c) for c in group).encode() for i, group in enumerate(groups)]


def _mixed(rng: random.Random, lines: Sequence[str], special: Sequence[str]) -> str:
    parts = [rng.choice([rng.choice(WORDS), rng.choice(lines)[: rng.randint(1, 30)], rng.choice([*special, "x"])])
             + rng.choice([*SPACES, "", "", " ", " "]) for _ in range(rng.randint(1, 8))]  # fmt: skip
    return rng.choice(["", "", " ", "\n"]) + "".join(parts)


def _block(rng: random.Random) -> str:
    start = rng.choice(ASSIGNED) // BLOCK * BLOCK
    points = [c for c in range(start, start + BLOCK) if c not in SURROGATES]
    marks = ["\u0301", "\u0323", "\u0345", "\u200d", " ", "a", "1"]
    return "".join(rng.choice([chr(rng.choice(points)), chr(rng.choice(points)), rng.choice(marks)]) for _ in range(16))


def _broken(rng: random.Random, text: bytes) -> bytes:
    data = bytearray(text)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        data[at : at + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 3))
    return bytes(data)
