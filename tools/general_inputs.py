"""General text and code in the splits that extraction has; the Brown corpus as plain text, which nothing trains on."""

import hashlib
import json
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from extraction import SPLITS

from eecompile.calibrate.documents import share_of

KINDS: Final[Mapping[str, tuple[str, ...]]] = {"text": ("gsm8k", "pydoc"), "code": ("humaneval",)}
GENERAL: Final = tuple(f"{kind}-{split}.jsonl" for kind in KINDS for split in SPLITS)
BROWN: Final = ("brown.jsonl",)
_PASSAGE_CHARACTERS: Final = 1200
_BROWN_TEXT: Final = re.compile(r"package/c[a-r]\d\d")


def write_general(texts: Path, out: Path) -> None:
    """text-*.jsonl of GSM8K and pydoc, code-*.jsonl of HumanEval, {"text": ...} a line, for each of the SPLITS.

    texts: the folder of those. Long documents are cut at ends of lines into passages; all of one are in one split.
    """
    lines: dict[str, list[str]] = {name: [] for name in GENERAL}
    for kind, sources in KINDS.items():
        for source in sources:
            for line in (texts / f"{source}.jsonl").read_text(encoding="utf-8").splitlines():
                text = json.loads(line)["text"]
                split = share_of(hashlib.sha256(text.encode()).digest(), SPLITS)
                lines[f"{kind}-{split}.jsonl"] += map(_line, passages(text))
    for name, found in lines.items():
        (out / name).write_text("".join(found), encoding="utf-8")


def passages(text: str) -> list[str]:
    """A document in parts of about 1,200 characters, each of whole lines."""
    parts = [""]
    for line in text.splitlines(keepends=True):
        if parts[-1] and len(parts[-1]) + len(line) > _PASSAGE_CHARACTERS:
            parts.append("")
        parts[-1] += line
    return [part for part in parts if part.strip()]


def write_brown(archive: Path, out: Path) -> None:
    """brown.jsonl: the Brown corpus's 500 samples without tags, {"text": ...} a line, in the order of their hashes, so
    that the first ones are a mixture of its genres."""
    with tarfile.open(archive) as tar:
        found = [tar.extractfile(m) for m in tar.getmembers() if _BROWN_TEXT.fullmatch(m.name)]
        texts = [untagged(stream.read().decode("ascii")) for stream in found if stream is not None]
    ordered = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
    (out / BROWN[0]).write_text("".join(map(_line, ordered)), encoding="utf-8")


def untagged(text: str) -> str:
    """Words without their parts of speech, spaced as they are printed."""
    plain = " ".join(token.rpartition("/")[0] for token in text.split())
    return re.sub(r" (?=[.,;:?!])", "", re.sub(r"``|''", '"', plain))


def _line(text: str) -> str:
    return json.dumps({"text": text}, ensure_ascii=False) + "\n"
