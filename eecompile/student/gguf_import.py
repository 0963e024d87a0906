"""Converts a llama-architecture GGUF file into a Hugging Face checkpoint directory, without torch.

Weights are dequantised to float32 a few rows at a time straight into `model.safetensors`, so peak memory does not
grow with the model. The tokenizer is rebuilt from the file's own metadata. The directory is written beside its
final name and renamed once it is complete.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

import gguf
import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from eecompile.errors import UsageError

T = TypeVar("T")
Floats = npt.NDArray[np.float32]
JsonObject = dict[str, Any]

CHUNK_VALUES = 1 << 21  # float32 values dequantised at a time (8 MB)
CONTROL, USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # Hugging Face role -> GGUF role
LAYER = {  # a layer's weights: GGUF name -> Hugging Face name, then rows and columns by name in `_sizes`
    "attn_norm": ("input_layernorm", "hidden"),
    "attn_q": ("self_attn.q_proj", "query", "hidden"),
    "attn_k": ("self_attn.k_proj", "key", "hidden"),
    "attn_v": ("self_attn.v_proj", "key", "hidden"),
    "attn_output": ("self_attn.o_proj", "hidden", "query"),
    "ffn_norm": ("post_attention_layernorm", "hidden"),
    "ffn_gate": ("mlp.gate_proj", "inner", "hidden"),
    "ffn_up": ("mlp.up_proj", "inner", "hidden"),
    "ffn_down": ("mlp.down_proj", "hidden", "inner"),
}
RECONVERT = "convert the model to GGUF again"
NO_TOKENIZER = "import without a tokenizer (tokenizer=False) and put the model's own tokenizer.json beside the weights"


def checkpoint_from_gguf(gguf_path: Path, out: Path, *, tokenizer: bool = True) -> None:
    """Write the checkpoint held by `gguf_path` as directory `out`, which must not exist yet (or be empty).

    `out` receives config.json, generation_config.json, model.safetensors (float32) and, unless `tokenizer` is
    false, tokenizer.json, tokenizer_config.json and special_tokens_map.json; it is complete or absent at all times.
    Raises UsageError where the file is not a whole llama-architecture GGUF or its tokenizer is not byte-level BPE.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("the output already exists", where=str(out), mend="remove it or name another directory")
    source = _opened(gguf_path)
    config = _config(source)
    weights = list(_weights(source, config))
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        if tokenizer:
            _write_tokenizer(source, config, partial)
        _write_json(partial / "config.json", config)
        _write_json(partial / "generation_config.json", _generation_config(source, config))
        with (partial / "model.safetensors").open("wb") as stream:
            _write_safetensors(source, weights, stream)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@dataclass(frozen=True)
class _Source:
    """An open GGUF file: its metadata, and its memory-mapped tensors by name."""

    path: Path
    reader: Any
    tensors: dict[str, Any]

    def refuse(self, what: str, mend: str = RECONVERT, cause: Exception | None = None) -> NoReturn:
        raise UsageError(what, where=str(self.path), mend=mend) from cause

    def get(self, key: str, kind: type[T]) -> T | None:
        """The metadata value of `key`, None where it is absent; a float is the shortest that float32 tells apart."""
        field = self.reader.get_field(key)
        if field is None:
            return None
        try:
            value = field.contents()
        except ValueError as e:
            self.refuse(f"metadata {key} is not valid text", cause=e)
        if kind is float and type(value) in (int, float):
            value = float(str(np.float32(value)))
        if type(value) is not kind:
            self.refuse(f"metadata {key} is a {type(value).__name__}, expected a {kind.__name__}")
        return value

    def need(self, key: str, kind: type[T]) -> T:
        """As `get`, but the value must be present and, a number, positive and finite."""
        value = self.get(key, kind)
        if value is None:
            self.refuse(f"metadata {key} is missing")
        if isinstance(value, (int, float)) and not 0 < value < float("inf"):
            self.refuse(f"metadata {key} is {value}, expected a positive number")
        return value


@dataclass(frozen=True)
class _Weight:
    """One tensor of the checkpoint and where it comes from; `head_rows` > 0: rows are permuted in heads of so many."""

    name: str
    shape: tuple[int, ...]
    tensor: Any
    head_rows: int = 0


def _opened(path: Path) -> _Source:
    """Parse the GGUF header; refuse what is no GGUF, is cut short, or is of another architecture."""
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
    except OSError as e:
        raise UsageError(f"cannot be read: {e.strerror}", where=str(path), mend="name a readable GGUF file") from e
    if magic != b"GGUF":
        raise UsageError("this is not a GGUF file", where=str(path), mend="name a file that starts with the bytes GGUF")
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as e:
        what = "the GGUF file is cut short or damaged"
        raise UsageError(what, where=str(path), mend="fetch the file again and compare its size and sha256") from e
    source = _Source(path, reader, {tensor.name: tensor for tensor in reader.tensors})
    architecture = source.get("general.architecture", str)
    if architecture != "llama" or reader.byte_order != "I":
        order = "" if reader.byte_order == "I" else " in foreign byte order"
        source.refuse(f"the architecture is {architecture}{order}, only native llama can be imported", "use a llama GGUF")
    return source


def _config(source: _Source) -> JsonObject:
    """config.json of the model: sizes from the metadata, vocabulary and tied head from the tensors present."""
    hidden = source.need("llama.embedding_length", int)
    heads = source.need("llama.attention.head_count", int)
    head = source.get("llama.attention.key_length", int) or hidden // heads
    if "token_embd.weight" not in source.tensors:
        source.refuse("tensor token_embd.weight is missing")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": source.need("llama.feed_forward_length", int),
        "num_hidden_layers": source.need("llama.block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": source.get("llama.attention.head_count_kv", int) or heads,
        "head_dim": head,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": source.need("llama.attention.layer_norm_rms_epsilon", float),
        "rope_theta": source.get("llama.rope.freq_base", float) or 10000.0,
        "vocab_size": int(source.tensors["token_embd.weight"].shape[-1]),
        "max_position_embeddings": source.need("llama.context_length", int),
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "torch_dtype": "float32",
    }
    _check_supported(source, config)
    return config | {f"{role}_token_id": source.get(f"tokenizer.ggml.{SPECIAL[role]}_token_id", int) for role in
                     ("bos", "eos", "pad")}
