"""The C++ tokenizer against Hugging Face's: the same ids, the same text back, and no text or file that breaks it."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizer_made as made
import tokenizer_texts as texts
from tokenizer_command import Command, build
from tokenizers import Tokenizer, models

NORMALIZERS, PRE_TOKENIZERS = made.normalizer_parts(), made.pre_tokenizer_parts()
FIRST, DECODERS = made.first_parts(), made.decoder_parts()
READ_TABLES = ("nfc", "nfkd", "lowercase", "accents", "bert-11None1", "clusters", "gpt4o", "split-removed", "words",
               "digits-0", "whitespace", "bert")  # fmt: skip
OF_PARTS, OF_MODELS, OF_ALL = 100, 700, 100_000  # texts
UNSUPPORTED, NOT_INTACT = 3, 4  # exit statuses
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def command() -> Command:
    """The command, with the sanitizers on."""
    return Command(build(sanitized=True))


def added(tokenizer: Tokenizer) -> list[str]:
    """Its added tokens."""
    return [token.content for token in tokenizer.get_added_tokens_decoder().values()]


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    """Its file."""
    file = folder / "tokenizer.json"
    file.write_text(tokenizer.to_str(), encoding="utf-8")
    return file


def readable(given: Sequence[bytes]) -> list[str]:
    """The texts that bytes stand for: broken UTF-8 as U+FFFD."""
    return [text.decode("utf-8", "replace") for text in given]


def assert_same_ids(
    command: Command, tokenizer: Tokenizer, given: Sequence[bytes], folder: Path, special: bool
) -> None:
    """Every text's ids are the library's."""
    wanted = [e.ids for e in tokenizer.encode_batch(readable(given), add_special_tokens=special)]
    got = command.encode(saved(tokenizer, folder), given, special)
    assert len(got) == len(given)
    wrong = [i for i, ids in enumerate(got) if ids != wanted[i]]
    shown = [f"{given[i]!r}\n  library {wanted[i]}\n  here    {got[i]}" for i in wrong[:3]]
    assert not wrong, f"{len(wrong)} of {len(given)} texts differ\n" + "\n".join(shown)


def pieces(name: str) -> list[bytes]:
    """The texts of a part's test; for one part that reads each table, every code point that has a meaning."""
    points = texts.every_point(512, texts.ASSIGNED) if name in READ_TABLES else []
    return texts.texts(sum(name.encode()), OF_PARTS) + points


@pytest.mark.parametrize("name", NORMALIZERS)
def test_normalizers_are_the_librarys(name: str, command: Command, tmp_path: Path) -> None:
    assert_same_ids(command, made.microscope(normalizer=NORMALIZERS[name]), pieces(name), tmp_path, False)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_pre_tokenizers_are_the_librarys(name: str, command: Command, tmp_path: Path) -> None:
    assert_same_ids(command, made.microscope(pre=PRE_TOKENIZERS[name]), pieces(name), tmp_path, False)


@pytest.mark.parametrize("name", FIRST)
def test_the_first_piece_is_the_librarys(name: str, command: Command, tmp_path: Path) -> None:
    given = texts.texts(5, OF_MODELS, added(FIRST[name]))
    assert_same_ids(command, FIRST[name], given, tmp_path, False)


@pytest.mark.parametrize("name", [*made.REAL, *made.TRAINED])
@pytest.mark.parametrize("special", [True, False])
def test_ids_are_the_librarys(name: str, special: bool, command: Command, tmp_path: Path) -> None:
    tokenizer = made.tokenizer_of(name)
    given = texts.texts(int(special), OF_MODELS, added(tokenizer))
    assert_same_ids(command, tokenizer, given, tmp_path, special)


@pytest.mark.parametrize("name", [*made.REAL, *made.TRAINED])
def test_text_comes_back_as_the_librarys(name: str, command: Command, tmp_path: Path) -> None:
    tokenizer = made.tokenizer_of(name)
    ids = [e.ids for e in tokenizer.encode_batch(readable(texts.texts(2, OF_MODELS, added(tokenizer))))]
    assert_same_text(command, tokenizer, ids, tmp_path)


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_are_the_librarys(name: str, command: Command, tmp_path: Path) -> None:
    tokenizer = made.decoding(DECODERS[name])
    rng = random.Random(name)
    known = sorted(tokenizer.get_vocab().values())
    ids = [[rng.choice(known) for _ in range(rng.randint(1, 12))] for _ in range(OF_MODELS)]
    assert_same_text(command, tokenizer, [*ids, [10_000], [known[0], 10_000, known[1]]], tmp_path)


def assert_same_text(command: Command, tokenizer: Tokenizer, ids: Sequence[list[int]], folder: Path) -> None:
    """Whole and streamed, with and without special tokens; a piece is valid UTF-8 or its JSON would not be read."""
    file = saved(tokenizer, folder)
    wanted = tokenizer.decode_batch(ids)
    assert command.ask(file, "decode", ids) == wanted
    assert command.ask(file, "decode-all", ids) == tokenizer.decode_batch(ids, skip_special_tokens=False)
    streamed = command.ask(file, "stream", ids)
    assert ["".join(parts) for parts in streamed] == wanted
    assert [len(parts) for parts in streamed] == [len(one) + 1 for one in ids]


def test_a_stream_gives_text_as_soon_as_it_is_certain(command: Command, tmp_path: Path) -> None:
    tokenizer = made.all_trained()["gpt2"]
    ids = tokenizer.encode("one 漢 two", add_special_tokens=False).ids
    [parts] = command.ask(saved(tokenizer, tmp_path), "stream", [ids])
    assert parts[-1] == ""
    assert [len(tokenizer.decode(ids[: i + 1]).rstrip("\ufffd")) for i in range(len(ids))] == [
        len("".join(parts[: i + 1])) for i in range(len(ids))
    ]


@pytest.mark.parametrize("letter", ["a", " ", "\n", "é", "."])
@pytest.mark.parametrize("name", ["gpt4o", "llama2", "unigram-0"])
def test_a_long_run_of_one_character_is_no_burden(name: str, letter: str, command: Command, tmp_path: Path) -> None:
    text = (letter * (MEGABYTE // 8)).encode()
    assert_same_ids(command, made.all_trained()[name], [text], tmp_path, False)


REGEXES = ("(?<=a)b", "(ab)+", r"\p{Han}", "[[:alpha:]]", "a*?b", "a++", "x*", "^a", "a|", "(?i:é)", "(?i:ss)",
           "(?!ab)c", "[a-z&&[^b]]", r"\b", "(a", "a)", "[a", "a{2,1}", "{",
           r"\h", "(" * 40 + "a" + ")" * 40)  # fmt: skip
TWICE = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2, "pair": [],
         "special_tokens": {}}  # fmt: skip
REFUSED = [
    ("pre_tokenizer", {"type": "UnicodeScripts"}, "UnicodeScripts"),
    ("pre_tokenizer", {"type": "CharDelimiterSplit", "delimiter": "x"}, "CharDelimiterSplit"),
    ("normalizer", {"type": "Transliterate"}, "Transliterate"),
    ("decoder", {"type": "CTC"}, "CTC"),
    ("decoder", {"type": "BPEDecoder", "suffix": "</w>"}, "BPEDecoder"),
    ("post_processor", {"type": "Novel"}, "Novel"),
    ("post_processor", {"type": "Sequence", "processors": [TWICE] * 60}, "twice"),
    ("model", {"type": "WordLevel", "vocab": {}}, "WordLevel"),
    ("model", {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.5}, "dropout"),
    ("model", {"type": "Unigram", "vocab": [["a", -1.0]]}, "unk_id"),
]
BROKEN = [
    ("model", {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}),
    ("model", {"type": "BPE", "vocab": {"a": -1}, "merges": []}),
    ("model", {"type": "BPE", "vocab": {"a": 1 << 40}, "merges": []}),
    ("model", {"type": "BPE", "vocab": [], "merges": []}),
    ("model", {"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "u"}),
    ("model", {"type": "WordPiece", "vocab": {"a": 0}}),
    ("model", {"type": "Unigram", "vocab": [["a"]], "unk_id": 0}),
    ("model", {"type": "Unigram", "vocab": [], "unk_id": 0}),
    ("model", {}),
    ("added_tokens", [{"content": "a"}]),
    ("added_tokens", [3]),
    ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "*"}),
    ("normalizer", {"type": "Precompiled", "precompiled_charsmap": ""}),
    ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
    ("normalizer", {"type": "Sequence", "normalizers": [7]}),
    ("normalizer", {"type": "Replace", "pattern": {}, "content": ""}),
    ("normalizer", {"type": 1}),
    ("decoder", {"type": "Strip", "content": "ab", "start": 0, "stop": 0}),
]


def plain() -> dict[str, object]:
    """A file that opens."""
    return dict(json.loads(made.microscope().to_str()))


def opened_with(command: Command, folder: Path, part: str, value: object) -> tuple[int, str]:
    """Exit status and message of opening that file with another part."""
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(plain() | {part: value}), encoding="utf-8")
    return command.opens(file)


@pytest.mark.parametrize(("part", "value", "named"), REFUSED)
def test_an_unsupported_part_is_refused_by_name(
    part: str, value: object, named: str, command: Command, tmp_path: Path
) -> None:
    status, message = opened_with(command, tmp_path, part, value)
    assert status == UNSUPPORTED, message
    assert named in message
    assert "mend:" in message


@pytest.mark.parametrize("regex", REGEXES)
def test_an_unsupported_pattern_is_refused_by_name(regex: str, command: Command, tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    status, message = opened_with(command, tmp_path, "pre_tokenizer", split)
    assert status == UNSUPPORTED, message
    assert regex in message


@pytest.mark.parametrize(("part", "value"), BROKEN)
def test_a_malformed_part_is_refused(part: str, value: object, command: Command, tmp_path: Path) -> None:
    status, message = opened_with(command, tmp_path, part, value)
    assert status == NOT_INTACT, message
    assert f"tokenizer.json.{part}" in message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"model": 3}', b'{"a":' * 100_000])
def test_what_is_no_tokenizer_is_refused(content: bytes, command: Command, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    assert command.opens(file)[0] == NOT_INTACT
    file.write_bytes(content)
    assert command.opens(file)[0] == NOT_INTACT


def test_sequences_within_sequences_do_not_overflow_the_stack(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    nested = '{"type":"Sequence","normalizers":[' * 50_000 + '{"type":"NFC"}' + "]}" * 50_000
    file.write_text(json.dumps(plain())[:-1] + f', "normalizer": {nested}}}', encoding="utf-8")
    assert command.opens(file)[0] == NOT_INTACT


def test_a_pattern_of_many_parts_does_not_overflow_the_stack(command: Command, tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "a?" * 200_000 + "b"}, "behavior": "Isolated", "invert": False}
    status, message = opened_with(command, tmp_path, "pre_tokenizer", split)
    assert status == UNSUPPORTED, message
    assert "more than 1000 parts" in message
    assert len(message) < 1000
    split["pattern"] = {"Regex": "a?" * 999 + "b"}
    assert opened_with(command, tmp_path, "pre_tokenizer", split)[0] == 0


def spaces(folder: Path, *strips: str) -> Path:
    """A file with a token that is a space, and one that is an a, with these of their flags set."""
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    tokens = [
        {"id": number, "content": content} | {flag: f"{content}{flag}" in strips for flag in flags}
        for number, content in enumerate(" a", 600)
    ]
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(plain() | {"added_tokens": tokens}), encoding="utf-8")
    return file


def test_a_token_whose_spaces_another_has_taken_is_empty(command: Command, tmp_path: Path) -> None:
    file, text = spaces(tmp_path, " lstrip", "arstrip"), "a   b"
    [ids] = command.ask(file, "encode", [text])
    [(same, _, _, _, spans)] = command.ask(file, "spans", [{"text": text, "pair": None, "most": None}])
    assert ids == same
    assert all(begin <= end <= len(text) for begin, end in spans)


def test_tokens_that_take_spaces_look_at_each_once(command: Command, tmp_path: Path) -> None:
    """Which took minutes for each megabyte, squared."""
    [ids] = command.ask(spaces(tmp_path, " lstrip"), "encode", [" " * (MEGABYTE // 4)])
    assert len(ids) == MEGABYTE // 4


@pytest.mark.parametrize("name", ["llama3", "wordpiece", "unigram-1"])
def test_a_changed_file_opens_or_is_refused(name: str, command: Command, tmp_path: Path) -> None:
    whole = made.all_trained()[name].to_str().encode()
    rng = random.Random(name)
    file = tmp_path / "tokenizer.json"
    for _ in range(25):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(2000)
            data[at : at + rng.randint(0, 3)] = rng.choice(
                [b"", b"0", b"-", b'"', b"[", b"}", b"null", rng.randbytes(2)]
            )
        file.write_bytes(data)
        status, message = command.opens(file)
        assert status in (0, UNSUPPORTED, NOT_INTACT), message


@pytest.mark.slow
@pytest.mark.parametrize("name", [*made.REAL, *made.TRAINED])
def test_many_texts_have_the_librarys_ids(name: str, tmp_path: Path) -> None:
    """At least 10^5 texts a tokenizer, every code point among them, a megabyte of one character, and the way back."""
    command, tokenizer = Command(build(sanitized=False)), made.tokenizer_of(name)
    given = texts.texts(7, OF_ALL, added(tokenizer)) + texts.every_point(64)
    given += [(letter * MEGABYTE).encode() for letter in "a \n.é"]
    assert_same_ids(command, tokenizer, given, tmp_path, True)
    ids = [e.ids for e in tokenizer.encode_batch(readable(given[:OF_ALL]))]
    assert_same_text(command, tokenizer, ids, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NORMALIZERS, *PRE_TOKENIZERS])
def test_many_texts_take_the_librarys_parts(name: str, tmp_path: Path) -> None:
    command = Command(build(sanitized=False))
    tokenizer = made.microscope(NORMALIZERS.get(name), PRE_TOKENIZERS.get(name))
    assert_same_ids(command, tokenizer, texts.texts(9, OF_ALL // 10) + texts.every_point(64), tmp_path, False)


def test_a_unigram_tie_falls_as_in_the_library(command: Command, tmp_path: Path) -> None:
    scores = [("<unk>", 0.0), ("a", -2.1), ("aa", -3.7), ("aaa", -5.300000000000001), ("b", -2.0), ("ab", -4.1)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
    given = [b"a" * n + b"b" * m for n in range(60) for m in range(3)]
    assert_same_ids(command, tokenizer, given, tmp_path, False)
