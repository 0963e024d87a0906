"""Text in and out: special tokens, chat templates, and streaming that never splits a character."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import example, given
from hypothesis import strategies as st

from eecompile.errors import UsageError
from eecompile.runtime.text import TextCodec

BYTE = {bytes([b]): i for i, b in enumerate(sorted(range(256), key=lambda b: tiny.byte_character(b)))}
START, END = tiny.TOKENIZER_IDS - 2, tiny.TOKENIZER_IDS - 1
USER = [{"role": "user", "content": " Hi the\n"}]


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec(tiny.add_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def template_codec(folder: Path, template: Any, **settings: Any) -> TextCodec:
    """A codec with this chat template."""
    return TextCodec(tiny.add_tokenizer(folder, chat_template=template, **settings))


def ids_of(data: bytes) -> list[int]:
    """One token a byte."""
    return [BYTE[data[i : i + 1]] for i in range(len(data))]


@given(text=st.text(max_size=40))
@example(text="naïve 🙂👩‍👩‍👧 漢字 the")
def test_text_survives_the_tokenizer(codec: TextCodec, text: str) -> None:
    assert codec.decode(codec.encode(text)) == text


@given(text=st.text(max_size=30))
@example(text="a🙂b")
@example(text="👩‍👩‍👧 漢字\u0301")
def test_a_stream_never_splits_a_character(codec: TextCodec, text: str) -> None:
    """Fed a byte at a time, every piece is whole characters, and together they are the text."""
    stream = codec.stream()
    pieces = [stream(token) for token in ids_of(text.encode())]
    assert "".join(pieces) == text
    for piece, end in zip(pieces, range(1, len(pieces) + 1), strict=True):
        assert text.encode()[:end].startswith("".join(pieces[:end]).encode()), piece


def test_a_character_appears_with_its_last_byte(codec: TextCodec) -> None:
    stream = codec.stream()
    assert [stream(token) for token in ids_of("é🙂".encode())] == ["", "é", "", "", "", "🙂"]


def test_bytes_that_are_no_text_do_not_block_the_stream(codec: TextCodec) -> None:
    stream = codec.stream()
    assert "".join(stream(token) for token in ids_of(b"a\xff\xfeb\xf0\x9fc")).startswith("a")
    assert stream(BYTE[b"d"]).endswith("d")


def test_streams_are_independent(codec: TextCodec) -> None:
    one, two = codec.stream(), codec.stream()
    first, second = ids_of("é".encode())
    assert one(first) == ""
    assert two(BYTE[b"x"]) == "x"
    assert one(second) == "é"


def test_special_tokens_are_read_and_not_shown(codec: TextCodec) -> None:
    assert codec.encode("<|start|>a<|end|>") == [START, BYTE[b"a"], END]
    assert codec.decode([START, BYTE[b"a"], END]) == "a"
    stream = codec.stream()
    assert [stream(token) for token in (START, BYTE[b"a"], END, BYTE[b"b"])] == ["", "a", "", "b"]


def test_the_tokenizer_neither_cuts_nor_pads(tmp_path: Path) -> None:
    tiny.add_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text())
    document["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    document["padding"] = {
        "strategy": {"Fixed": 50}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<s>",
    }  # fmt: skip
    path.write_text(json.dumps(document))
    assert TextCodec(tmp_path).encode("abcdef") == ids_of(b"abcdef")


def test_a_conversation_in_the_models_template(codec: TextCodec) -> None:
    answer = {"role": "assistant", "content": "Yes"}
    turn = "<|start|>user\nHi the<|end|>\n<|start|>assistant\n"
    text = f"<s>{turn}Yes<|end|>\n{turn}"
    assert codec.encode_chat([*USER, answer, *USER]) == codec.encode(text)


def test_special_tokens_may_be_objects(tmp_path: Path) -> None:
    codec = template_codec(tmp_path, "{{ bos_token }}x", bos_token={"content": "<s>", "special": True})
    assert codec.encode_chat(USER) == codec.encode("<s>x")


def test_the_template_may_be_one_of_several_or_a_file(tmp_path: Path) -> None:
    named = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    assert template_codec(tmp_path, named).encode_chat(USER) == ids_of(b"D")
    (tmp_path / "chat_template.jinja").write_text("F")
    assert TextCodec(tmp_path).encode_chat(USER) == ids_of(b"F")


def test_no_template(tmp_path: Path) -> None:
    for template in (None, [{"name": "tools", "template": "T"}]):
        with pytest.raises(UsageError, match=r"no chat template(.|\n)*plain text"):
            template_codec(tmp_path, template).encode_chat(USER)


def test_the_templates_own_refusal_is_passed_on(codec: TextCodec) -> None:
    with pytest.raises(UsageError, match="the user begins"):
        codec.encode_chat([{"role": "assistant", "content": "Hello"}])


@pytest.mark.parametrize(
    "template",
    ["{% if %}", "{{ nothing.at.all }}", "{{ messages[0]['content'] + 3 }}", "{{ 1 / 0 }}", "{{ messages[9]['role'] }}",
     "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}", "{{ strftime_now(3) }}"],
)  # fmt: skip
def test_a_template_that_fails_says_so(tmp_path: Path, template: str) -> None:
    with pytest.raises(UsageError, match="the chat template fails"):
        template_codec(tmp_path, template).encode_chat(USER)


def test_messages_that_do_not_suit_the_template(codec: TextCodec) -> None:
    for messages in ([], [{"role": "user"}], [{"role": "user", "content": None}], ["hello"]):
        try:
            assert isinstance(codec.encode_chat(messages), list)  # type: ignore[arg-type]
        except UsageError as e:
            assert "chat template fails" in str(e)  # noqa: PT017


def test_what_published_templates_use(tmp_path: Path) -> None:
    """Trimmed blocks, loop controls, tojson without escapes, and the date."""
    template = (
        "{% for m in messages %}\n"
        "    {% if m.role == 'system' %}{% continue %}{% endif %}\n"
        "{{ m.content | trim }}|{{ {'é': 1} | tojson }}|{{ strftime_now('%Y')|length }}\n"
        "{% endfor %}"
    )
    codec = template_codec(tmp_path, template)
    messages = [{"role": "system", "content": "x"}, *USER]
    assert codec.decode(codec.encode_chat(messages)) == 'Hi the|{"é": 1}|4\n'
