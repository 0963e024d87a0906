"""Chat templates as tables: the template's own text for every conversation that a table takes, or why there is none."""

import random
from pathlib import Path

import chat_templates as ct
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from real_inputs import real_input

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.runtime.chat import ChatForm, chat_form
from eecompile.runtime.template import ChatTemplate, read_template

SPECIAL = {"bos_token": "<s>"}
FORMS = {name: chat_form(ChatTemplate(source, SPECIAL)) for name, source in ct.TABLES.items()}
MESSAGES = st.lists(
    st.tuples(st.sampled_from(c.CHAT_ROLES), st.text(max_size=12) | st.sampled_from([" x ", "\u2003x\x1c", "</s>\n"])),
    max_size=6,
)


def rendered(template: ChatTemplate, messages: list[dict[str, str]]) -> str | None:
    try:
        return template.render(messages)
    except UsageError:
        return None


@pytest.mark.parametrize("name", ct.TABLES)
@given(said=MESSAGES)
def test_a_table_says_what_its_template_says(name: str, said: list[tuple[str, str]]) -> None:
    """And has no entry where the template takes no such conversation."""
    form, template = FORMS[name], ChatTemplate(ct.TABLES[name], SPECIAL)
    messages = [{"role": role, "content": content} for role, content in [*said, ("user", "Hi ")]]
    text = rendered(template, messages)
    assert form.allows(tuple(m["role"] for m in messages)) == (text is not None)
    if text is not None and not any(word in m["content"] for m in messages for word in form.special):
        assert form.render(messages) == text


@pytest.mark.parametrize("name", ct.TABLES)
def test_a_table_is_found_whole(name: str) -> None:
    assert FORMS[name].refused == ""
    assert FORMS[name].special == ct.SPECIAL.get(name, [])
    stripped = {"stripped": ["system", "user", "assistant"], "two": ["user", "assistant"]}
    assert FORMS[name].stripped == stripped.get(name, [])


@pytest.mark.parametrize(("source", "why"), ct.NO_TABLES.items(), ids=range(len(ct.NO_TABLES)))
def test_a_template_that_is_no_table_is_refused_by_what_it_does(source: str, why: str) -> None:
    form = chat_form(ChatTemplate(source, {}))
    assert why in form.refused
    assert form == ChatForm(refused=form.refused)


def test_a_template_that_writes_what_is_no_text_is_refused() -> None:
    source = "{% for m in messages %}{{ '\\ud800' }}{{ m.role }}{{ m.content }}{% endfor %}"
    assert "not UTF-8" in chat_form(ChatTemplate(source, {})).refused


@pytest.mark.parametrize(
    "fields", [{"between": {"end": {}}}, {"between": {"start": {"start": ""}}}, {"stripped": ["me"]}, {"special": [""]}]
)
def test_a_table_of_something_else_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ChatForm.model_validate(fields)


def test_a_bundle_has_its_table(tmp_path: Path) -> None:
    settings = tiny.config(vocab_size=tiny.TOKENIZER_IDS)
    source = tiny.add_tokenizer(tiny.checkpoint(tmp_path / "checkpoint", settings))
    opened = tiny.open_bundle(tmp_path / "bundle", source)
    form = ChatForm.model_validate_json((opened.files.path / c.CHAT).read_bytes())
    assert c.CHAT in opened.manifest.files
    assert (form.refused, form.stripped) == ("", [*c.CHAT_ROLES])
    assert form.between["start"] == {"user": "<s><|start|>user\n", "system": "<s><|start|>system\n"}
    assert opened.text is not None
    messages = [{"role": "user", "content": " Hi the\n"}]
    assert opened.text.encode(form.render(messages)) == opened.text.encode_chat(messages)


@pytest.mark.real
def test_the_real_models_template_is_a_table() -> None:
    template = read_template(real_input("smollm2"))
    assert template is not None
    form, rng = chat_form(template), random.Random(0)
    assert form.refused == ""
    for _ in range(20):
        roles = [*rng.choices(c.CHAT_ROLES, k=rng.randrange(5)), "user"]
        messages = [{"role": role, "content": f" {rng.random()}\n"} for role in roles]
        assert form.render(messages) == template.render(messages)
