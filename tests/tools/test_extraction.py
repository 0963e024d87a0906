"""Extraction from mails: what is asked for stands in the prompt, nothing there is missed, splits go by body."""

import io
import json
import sys
import tarfile
from email import message_from_string
from pathlib import Path
from types import ModuleType

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

ROOT = Path(__file__).parents[2]
MADE = ROOT / "build" / "inputs" / "extraction"
MAIL = """From: "Doe, Jane" <jane.doe@example.org>
Date: Thu, 22 Aug 2002 18:26:25 +0700
Subject: =?iso-8859-1?Q?Caf=E9?= prices

Hello Bob,
the invoice of $1,250.50 (or EUR 900) is due, see http://bills.example.com/a?b=1
or www.example.net. Write to pay@example.com or call 800-245-2801,
not on 2002-08-22 or from 10.0.0.1 with version 1.2.3 and 12345.
"""


@pytest.fixture
def extraction(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/extraction.py."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    sys.modules.pop("extraction", None)
    import extraction as module

    return module


def words(text: str) -> int:
    return len(text.split())


def mail_of(extraction: ModuleType, text: str) -> object:
    message = message_from_string(text)
    return extraction.shortened(message, extraction.body_digest(message), words)


def test_every_kind_of_field_is_found(extraction: ModuleType) -> None:
    prompt, completion = extraction.example(mail_of(extraction, MAIL), tuple(extraction.FIELDS))
    assert json.loads(completion) == {
        "name": "Doe, Jane",
        "address": "jane.doe@example.org",
        "date": "Thu, 22 Aug 2002 18:26:25 +0700",
        "subject": "Café prices",
        "emails": ["pay@example.com"],
        "hosts": ["bills.example.com", "www.example.net"],
        "amounts": ["$1,250.50", "EUR 900"],
        "phones": ["800-245-2801"],
    }
    assert extraction.is_literal(prompt, completion)
    assert not extraction.is_literal(prompt.replace("Jane", "John"), completion)


def test_what_a_mail_lacks_is_null_or_empty(extraction: ModuleType) -> None:
    bare = MAIL.replace('"Doe, Jane" <jane.doe@example.org>', "jane.doe@example.org").split("Hello")[0]
    body = "Nothing at all stands in this mail, not even a number of any kind.\n"
    _, completion = extraction.example(mail_of(extraction, bare + body), ("name", "hosts"))
    assert completion == '{"name":null,"hosts":[]}'


@pytest.mark.parametrize("missing", ["From", "Date", "Subject"])
def test_a_mail_without_a_header_is_left_out(extraction: ModuleType, missing: str) -> None:
    assert mail_of(extraction, MAIL) is not None
    assert mail_of(extraction, MAIL.replace(f"{missing}:", "X-Other:")) is None


def test_html_is_read_as_text_where_there_is_no_plain_part(extraction: ModuleType) -> None:
    page = "<html><head><title>no</title></head><p>Buy &amp; save <b>$5</b> now, and again tomorrow morning</p></html>"
    message = message_from_string(f"Content-Type: text/html\n\n{page}")
    assert extraction.body_of(message) == "Buy & save $5 now, and again tomorrow morning"


def test_a_long_mail_is_cut_to_the_bound_and_shows_telling_lines(extraction: ModuleType) -> None:
    lines = [f"line {i} says nothing of interest to anybody who reads it" for i in range(50)]
    mail = mail_of(extraction, MAIL.split("Hello")[0] + "\n".join([*lines, "ask http://late.example.org/ for more"]))
    prompt, completion = extraction.example(mail, ("hosts",))
    assert json.loads(completion) == {"hosts": ["late.example.org"]}
    assert "line 2 " in prompt
    assert "line 3 " not in prompt
    mail = mail_of(extraction, MAIL.split("Hello")[0] + "\n".join(lines))
    schema = extraction.schema_of(
        extraction.body_digest(message_from_string(MAIL.split("Hello")[0] + "\n".join(lines)))
    )
    assert extraction.PROMPT_TOKENS - 2 < words(extraction.example(mail, schema)[0]) <= extraction.PROMPT_TOKENS


def package(path: Path, mails: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in mails.items():
            data = json.dumps({"text": text}).encode()
            info = tarfile.TarInfo(f"package/data/easy-ham-1/{name}.json")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_copies_of_a_body_are_in_one_split_and_prompts_once(extraction: ModuleType, tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    mails = {f"{i:02}": MAIL.replace("Bob", "Bob" + "b" * i) for i in range(40)}
    mails |= {
        f"copy-{i:02}": m.replace("Hello", "HELLO").replace("jane.doe", "j") for i, m in enumerate(mails.values())
    }
    mails |= {f"same-{i}": m for i, m in enumerate(list(mails.values())[:5])}
    archive = package(tmp_path / "mails.tgz", mails)
    extraction.write_extraction(archive, tmp_path / "tokenizer.json", tmp_path)
    found = {split: (tmp_path / f"{split}.jsonl").read_text().splitlines() for split in extraction.SPLITS}
    assert sum(map(len, found.values())) == 80
    of_name: dict[str, set[str]] = {}
    for split, lines in found.items():
        assert lines
        for line in lines:
            [name] = [word for word in json.loads(line)["prompt"].split() if word.startswith("Bob")]
            of_name.setdefault(name, set()).add(split)
    assert len(of_name) == 40
    assert all(len(splits) == 1 for splits in of_name.values())


@pytest.mark.skipif(not MADE.is_dir(), reason="needs make build/inputs/.extraction")
def test_what_was_made_is_json_of_what_stands_in_the_prompt(extraction: ModuleType) -> None:
    prompts: set[str] = set()
    for split in extraction.SPLITS:
        lines = [json.loads(line) for line in (MADE / f"{split}.jsonl").read_text().splitlines()]
        assert len(lines) > 1000
        assert all(extraction.is_literal(line["prompt"], line["completion"]) for line in lines)
        assert not prompts & {line["prompt"] for line in lines}
        prompts |= {line["prompt"] for line in lines}
