"""Text by the C interface: ids, texts, streams and conversations are the Python runtime's."""

import ctypes as ct
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import chat_templates
import pytest
import tiny
from compiled import DEPS
from core_files import replace_file

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.runtime import Bundle

USAGE, INTEGRITY, UNSUPPORTED = 1, 5, 7
SPACES = "".join(chr(i) for i in range(0x3001) if chr(i).isspace())
CONTENTS = ["", "Hi", " the  the\n", f"{SPACES}x{SPACES}y{SPACES}", SPACES, "é漢🙂", "<|end|>\n", "[/INST]", "{{ x }}"]


class OpenOptions(ct.Structure):
    _fields_ = (("size", ct.c_size_t), ("threads", ct.c_int32), ("sizes_only", ct.c_int32), ("ort", ct.c_char_p))


class Message(ct.Structure):
    _fields_ = (("role", ct.c_char_p), ("content", ct.c_char_p), ("bytes", ct.c_size_t))


class Text:
    """A bundle's text in the library, as another language sees it."""

    def __init__(self, c_library: Any, path: Path, threads: int) -> None:
        self.c, self.bundle, self.handle = c_library, ct.c_void_p(), ct.c_void_p()
        library = str(DEPS / "lib" / "libonnxruntime.so.1").encode()
        options = OpenOptions(ct.sizeof(OpenOptions), threads, 0, library)
        self.code = self.c.eecompile_open(str(path).encode(), ct.byref(options), ct.byref(self.bundle))
        if self.code == 0:
            self.code = self.c.eecompile_text_new(self.bundle, ct.byref(self.handle))
        self.c.eecompile_close(self.bundle)  # the text does without

    def said(self) -> str:
        return str(self.c.eecompile_last_error().decode())

    def array(self, kind: Any, call: Any) -> Any:
        """What a call fills an array of `kind` with: asked for its size, then given room; too little first."""
        count = ct.c_size_t()
        self.code = call(None, 0, ct.byref(count))
        if self.code != 0:
            return None
        for room in (count.value // 2, count.value):
            array = (kind * (room + 1))()
            array[room] = 77
            assert call(array, room, ct.byref(count)) == 0
            assert array[room] in (77, b"M")
        return array[: count.value]

    def encode(self, text: bytes) -> list[int]:
        found: list[int] = self.array(
            ct.c_int64, lambda *room: self.c.eecompile_encode(self.handle, text, ct.c_size_t(len(text)), *sized(room))
        )
        return found

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int] | None:
        contents = [m["content"].encode() for m in messages]
        array = (Message * len(messages))(
            *[Message(m["role"].encode(), said, len(said)) for m, said in zip(messages, contents, strict=True)]
        )
        found: list[int] | None = self.array(
            ct.c_int64,
            lambda *room: self.c.eecompile_chat(self.handle, array, ct.c_size_t(len(messages)), *sized(room)),
        )
        return found

    def decode(self, ids: Sequence[int]) -> str:
        given = (ct.c_int64 * len(ids))(*ids)
        found: bytes = self.array(
            ct.c_char, lambda *room: self.c.eecompile_decode(self.handle, given, ct.c_size_t(len(ids)), *sized(room))
        )
        return found.decode()

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text that each id completes, and what is left."""
        stream, data, size = ct.c_void_p(), ct.POINTER(ct.c_char)(), ct.c_size_t()
        assert self.c.eecompile_stream_new(self.handle, ct.byref(stream)) == 0
        found = []
        for token in ids:
            assert self.c.eecompile_stream_push(stream, ct.c_int64(token), ct.byref(data), ct.byref(size)) == 0
            found.append(ct.string_at(data, size.value).decode())
        assert self.c.eecompile_stream_finish(stream, ct.byref(data), ct.byref(size)) == 0
        found.append(ct.string_at(data, size.value).decode())
        assert self.c.eecompile_stream_push(stream, ct.c_int64(0), ct.byref(data), ct.byref(size)) == USAGE
        assert self.c.eecompile_stream_finish(stream, ct.byref(data), ct.byref(size)) == USAGE
        self.c.eecompile_stream_free(stream)
        return found


def sized(room: tuple[Any, ...]) -> tuple[Any, ...]:
    """An array, its capacity and the place for the count, as they are passed."""
    return room[0], ct.c_size_t(room[1]), room[2]


@pytest.fixture(scope="module")
def c_library(library: Path) -> Any:
    loaded = ct.CDLL(str(library))
    loaded.eecompile_last_error.restype = ct.c_char_p
    for name in ("eecompile_close", "eecompile_text_free", "eecompile_stream_free"):
        getattr(loaded, name).argtypes = (ct.c_void_p,)
        getattr(loaded, name).restype = None
    return loaded


def bundle_with(folder: Path, template: Any) -> Bundle:
    """A bundle of the smallest model with this chat template."""
    settings = tiny.config(vocab_size=tiny.TOKENIZER_IDS, num_hidden_layers=1)
    source = tiny.add_tokenizer(tiny.checkpoint(folder / "checkpoint", settings), chat_template=template)
    return tiny.open_bundle(folder / "bundle", source)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_with(tmp_path_factory.mktemp("text"), chat_templates.TABLES["thinking"])


@pytest.fixture(scope="module")
def text(c_library: Any, opened: Bundle) -> Iterator[Text]:
    made = Text(c_library, opened.files.path, opened.threads)
    assert made.code == 0, made.said()
    yield made
    c_library.eecompile_text_free(made.handle)


def test_ids_and_texts_are_the_python_runtimes(text: Text, opened: Bundle) -> None:
    assert opened.text is not None
    for content in [*CONTENTS, "the <s>other</s> the <|start|>"]:
        ids = opened.text.encode(content)
        assert text.encode(content.encode()) == ids
        assert text.decode(ids) == opened.text.decode(ids)
        assert "".join(text.pieces(ids)) == opened.text.decode(ids)
    assert text.encode(b"a\xffb") == opened.text.encode("a\ufffdb")


def test_a_stream_gives_whole_characters(text: Text, opened: Bundle) -> None:
    assert opened.text is not None
    assert text.pieces(opened.text.encode("é🙂")) == ["", "é", "", "", "", "🙂", ""]
    assert text.pieces(opened.text.encode("aé")[:-1]) == ["a", "", "\ufffd"]


def conversations(count: int) -> Iterator[list[dict[str, str]]]:
    rng = random.Random(7)
    for _ in range(count):
        roles = [*rng.choices(c.CHAT_ROLES, k=rng.randrange(5)), rng.choice(["user", "user", "assistant"])]
        yield [{"role": role, "content": rng.choice(CONTENTS)} for role in roles]


@pytest.mark.parametrize("name", chat_templates.TABLES)
def test_conversations_are_the_python_runtimes(c_library: Any, tmp_path: Path, name: str) -> None:
    """Or are refused, as the template itself refuses them, or since nothing says what follows an assistant."""
    opened, taken = bundle_with(tmp_path, chat_templates.TABLES[name]), 0
    text = Text(c_library, opened.files.path, opened.threads)
    assert opened.text is not None
    for messages in conversations(60):
        try:
            expected = opened.text.encode_chat(messages)
        except UsageError:
            expected = None
        if messages[-1]["role"] == "assistant":
            expected = None
        found = text.chat(messages)
        assert found == expected, messages
        assert text.code == (0 if found is not None else USAGE)
        taken += found is not None
    assert 5 < taken < 60
    c_library.eecompile_text_free(text.handle)


def test_what_a_conversation_lacks_is_said(text: Text) -> None:
    user = {"role": "user", "content": "x"}
    for messages, code, why in (
        ([], USAGE, "no turn for the assistant"),
        ([{"role": "tool", "content": ""}], USAGE, "there is no role tool"),
        ([user, {"role": "assistant", "content": "a"}], USAGE, "end the conversation with a message of the user"),
        ([{"role": "user", "content": "so </think> it"}], UNSUPPORTED, "something of its own with </think>"),
    ):
        assert text.chat(messages) is None
        assert text.code == code
        assert why in text.said()
    no_role = (Message * 1)(Message(None, b"", 0))
    count = ct.c_size_t()
    assert text.c.eecompile_chat(text.handle, no_role, ct.c_size_t(1), None, ct.c_size_t(0), ct.byref(count)) == USAGE
    assert text.c.eecompile_encode(None, b"", ct.c_size_t(0), None, ct.c_size_t(0), ct.byref(count)) == USAGE


def test_a_template_that_is_no_table_is_refused_by_name(c_library: Any, tmp_path: Path) -> None:
    opened = bundle_with(tmp_path, next(iter(chat_templates.NO_TABLES)))
    text = Text(c_library, opened.files.path, opened.threads)
    assert text.chat([{"role": "user", "content": "x"}]) is None
    assert text.code == UNSUPPORTED
    assert "what day it is" in text.said()
    assert text.encode(b"x") == opened.text.encode("x")  # type: ignore[union-attr]
    c_library.eecompile_text_free(text.handle)


def test_no_template_and_no_tokenizer(c_library: Any, tmp_path: Path, shelf: Any) -> None:
    text = Text(c_library, (opened := bundle_with(tmp_path, None)).files.path, opened.threads)
    assert text.chat([{"role": "user", "content": "x"}]) is None
    assert (text.code, "no chat template" in text.said()) == (USAGE, True)
    c_library.eecompile_text_free(text.handle)
    none = Text(c_library, shelf.bundle(at=[2]).files.path, opened.threads)
    assert (none.code, none.handle.value, "no tokenizer" in none.said()) == (USAGE, None, True)


@pytest.mark.parametrize(
    "change",
    [lambda d: d.update(more=1), lambda d: d["between"].update(me={}), lambda d: d.update(between=[]),
     lambda d: d["between"]["start"].update(user=3), lambda d: d.update(special=[""]), lambda d: d.pop("stripped"),
     lambda d: d["between"].update(user=[])],
)  # fmt: skip
def test_a_table_that_is_none_is_refused(c_library: Any, tmp_path: Path, opened: Bundle, change: Any) -> None:
    root = shutil.copytree(opened.files.path, tmp_path / "bundle")
    document = json.loads((root / c.CHAT).read_text())
    change(document)
    replace_file(root, c.CHAT, json.dumps(document).encode())
    found = Text(c_library, root, opened.threads)
    assert (found.code, c.CHAT in found.said()) == (INTEGRITY, True), found.said()


def test_a_changed_table_is_noticed(c_library: Any, tmp_path: Path, opened: Bundle) -> None:
    root = shutil.copytree(opened.files.path, tmp_path / "bundle")
    text = (root / c.CHAT).read_text()
    (root / c.CHAT).write_text(text.replace("<user>", "<used>"))
    found = Text(c_library, root, opened.threads)
    assert (found.code, "SHA-256" in found.said()) == (INTEGRITY, True), found.said()
