"""Kinds, spans and pairs of the C++ tokenizer against Hugging Face's."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizer_made as made
import tokenizer_texts as texts
from tokenizer_command import Command, build
from tokenizers import Tokenizer, processors

NORMALIZERS, PRE_TOKENIZERS = made.normalizer_parts(), made.pre_tokenizer_parts()
OF_PARTS, OF_MODELS = 60, 150  # texts


@pytest.fixture(scope="module")
def command() -> Command:
    """The command, with the sanitizers on."""
    return Command(build(sanitized=True))


def asked(given: Sequence[bytes], seed: int, most: Sequence[int | None] = (None,)) -> list[dict[str, Any]]:
    """Each text alone or with another, cut off at one of `most`."""
    rng = random.Random(seed)
    hexed = [{"bytes": text.hex()} for text in given]
    return [
        {"text": text, "pair": rng.choice(hexed) if rng.random() < 0.4 else None, "most": rng.choice(most)}
        for text in hexed
    ]


def readable(part: dict[str, str]) -> str:
    return bytes.fromhex(part["bytes"]).decode("utf-8", "replace")


def wanted(tokenizer: Tokenizer, line: dict[str, Any]) -> list[Any]:
    """What the library says of a text or pair."""
    tokenizer.no_truncation()
    if line["most"] is not None:
        tokenizer.enable_truncation(line["most"])
    pair = None if line["pair"] is None else readable(line["pair"])
    e = tokenizer.encode(readable(line["text"]), pair)
    tokenizer.no_truncation()
    special = [bool(s) for s in e.special_tokens_mask]
    return [e.ids, e.type_ids, special, [s == 1 for s in e.sequence_ids], [list(span) for span in e.offsets]]


def assert_same(command: Command, tokenizer: Tokenizer, lines: list[dict[str, Any]], folder: Path) -> None:
    """Every answer is the library's."""
    file = folder / "tokenizer.json"
    file.write_text(tokenizer.to_str(), encoding="utf-8")
    got = command.ask(file, "spans", lines)
    right = [wanted(tokenizer, line) for line in lines]
    wrong = [i for i in range(len(lines)) if got[i] != right[i]]
    shown = [f"{lines[i]}\n  library {right[i]}\n  here    {got[i]}" for i in wrong[:3]]
    assert not wrong, f"{len(wrong)} of {len(lines)} texts differ\n" + "\n".join(shown)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_normalizers_keep_track_of_where_text_comes_from(name: str, command: Command, tmp_path: Path) -> None:
    given = asked(texts.texts(sum(name.encode()), OF_PARTS), 1)
    assert_same(command, made.microscope(normalizer=NORMALIZERS[name]), given, tmp_path)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_pre_tokenizers_keep_track_of_where_text_comes_from(name: str, command: Command, tmp_path: Path) -> None:
    given = asked(texts.texts(sum(name.encode()), OF_PARTS), 2)
    assert_same(command, made.microscope(pre=PRE_TOKENIZERS[name]), given, tmp_path)


@pytest.mark.parametrize("name", [*made.REAL, *made.TRAINED])
def test_kinds_spans_and_pairs_are_the_librarys(name: str, command: Command, tmp_path: Path) -> None:
    tokenizer = made.tokenizer_of(name)
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    given = asked(texts.texts(3, OF_MODELS, added), 3, (None, None, 40, 17, 8))
    assert_same(command, tokenizer, given, tmp_path)


TEMPLATE = processors.TemplateProcessing(
    "[CLS]:0 $A:2 [SEP]:1", "[CLS]:0 $B:1 [SEP]:0 $A:2 [SEP]:1 [SEP]:1", [("[CLS]", 1), ("[SEP]", 2)]
)
PROCESSORS = {
    "none": None,
    "template": TEMPLATE,
    "bert": processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1)),
    "roberta": processors.RobertaProcessing(("</s>", 2), ("<s>", 1)),
    "roberta-untrimmed": processors.RobertaProcessing(("</s>", 2), ("<s>", 1), trim_offsets=False),
    "roberta-unprefixed": processors.RobertaProcessing(("</s>", 2), ("<s>", 1), add_prefix_space=False),
    "bytes": processors.ByteLevel(trim_offsets=True),
    "both": processors.Sequence([processors.ByteLevel(trim_offsets=True), TEMPLATE]),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_post_processors_are_the_librarys(name: str, command: Command, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(made.all_trained()["gpt2"].to_str())
    if PROCESSORS[name] is None:
        tokenizer = Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()) | {"post_processor": None}))
    else:
        tokenizer.post_processor = PROCESSORS[name]
    given = asked(texts.texts(4, OF_MODELS), 4, (None, None, 30, 9))
    assert_same(command, tokenizer, given, tmp_path)
