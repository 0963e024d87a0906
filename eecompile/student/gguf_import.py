"""Converts a llama-architecture GGUF file into a Hugging Face checkpoint directory, without torch.

Weights are dequantised to float32 a few rows at a time straight into `model.safetensors`, so peak memory does
not grow with the model. The tokenizer is rebuilt from the file's own metadata. The directory is written beside
its final name and renamed once it is complete.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from eecompile.student.gguf_source import OTHER_MODEL, RECONVERT, REFETCH, GGUFSource, open_gguf
from eecompile.student.gguf_tokenizer import ROLES, write_json, write_tokenizer
from eecompile.student.writing import new_checkpoint, write_safetensors

JsonObject = dict[str, Any]

CHUNK_VALUES = 1 << 21  # float32 values dequantised at a time (8 MB)
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


def checkpoint_from_gguf(gguf_path: Path, out: Path, *, tokenizer: bool = True) -> None:
    """Write the checkpoint held by `gguf_path` as directory `out`, which must not exist yet (or be empty).

    `out` receives config.json, generation_config.json, model.safetensors (float32) and, unless `tokenizer` is
    false, tokenizer.json, tokenizer_config.json and special_tokens_map.json. It is complete or absent at all
    times. Raises UsageError where the file is not a whole llama GGUF or its tokenizer is not byte-level BPE.
    """
    source = open_gguf(gguf_path)
    config = _config(source)
    weights = list(_weights(source, config))
    with new_checkpoint(out) as folder:
        if tokenizer:
            write_tokenizer(source, config, folder)
        write_json(folder / "config.json", config)
        write_json(folder / "generation_config.json", _generation_config(source, config))
        rows = (values.astype("<f4").tobytes() for weight in weights for values in _float_rows(source, weight))
        write_safetensors(folder / "model.safetensors", {w.name: ("F32", w.shape) for w in weights}, rows)


@dataclass(frozen=True)
class _Weight:
    """A tensor of the checkpoint and its source; `head_rows` > 0: rows are interleaved within such heads."""

    name: str
    shape: tuple[int, ...]
    tensor: Any
    head_rows: int = 0


def _config(source: GGUFSource) -> JsonObject:
    """config.json: sizes from the metadata, vocabulary and tied head from the tensors that are present."""
    if "token_embd.weight" not in source.tensors:
        source.refuse("tensor token_embd.weight is missing", REFETCH)
    hidden = source.need("llama.embedding_length", int)
    heads = source.need("llama.attention.head_count", int)
    config: JsonObject = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": source.need("llama.feed_forward_length", int),
        "num_hidden_layers": source.need("llama.block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": source.need("llama.attention.head_count_kv", int, heads),
        "head_dim": source.need("llama.attention.key_length", int, hidden // heads),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": source.need("llama.attention.layer_norm_rms_epsilon", float),
        "rope_theta": source.need("llama.rope.freq_base", float, 10000.0),
        "vocab_size": int(source.tensors["token_embd.weight"].shape[-1]),
        "max_position_embeddings": source.need("llama.context_length", int),
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "torch_dtype": "float32",
    }
    _check_supported(source, config)
    for role in ("bos", "eos", "pad"):
        config[f"{role}_token_id"] = source.get(f"tokenizer.ggml.{ROLES[role]}_token_id", int)
    return config


def _check_supported(source: GGUFSource, config: JsonObject) -> None:
    """Refuse what a plain LlamaForCausalLM cannot express: experts, scaled or partial rotary positions."""
    head, heads, shared = config["head_dim"], config["num_attention_heads"], config["num_key_value_heads"]
    if source.get("llama.expert_count", int):
        source.refuse("mixture of experts is not supported", OTHER_MODEL)
    scaling = source.get("llama.rope.scaling.type", str)
    if scaling not in (None, "none") or "rope_freqs.weight" in source.tensors:
        source.refuse("scaled rotary positions are not supported", OTHER_MODEL)
    for key in ("llama.rope.dimension_count", "llama.attention.value_length"):
        if source.need(key, int, head) != head:
            source.refuse(f"{key} differs from the head size {head}, which is not supported", OTHER_MODEL)
    if head % 2 or heads % shared:
        source.refuse(f"{heads} heads of {head} with {shared} key-value heads make no llama", RECONVERT)


def _generation_config(source: GGUFSource, config: JsonObject) -> JsonObject:
    """generation_config.json: the special ids, the end-of-turn id being a further end where the file has one."""
    ids = {key: config[key] for key in ("bos_token_id", "pad_token_id") if config[key] is not None}
    ends = dict.fromkeys([config["eos_token_id"], source.get("tokenizer.ggml.eot_token_id", int)])
    present = [end for end in ends if end is not None]
    if present:
        ids["eos_token_id"] = present if len(present) > 1 else present[0]
    return ids


def _sizes(config: JsonObject) -> dict[str, int]:
    """Rows and columns that weights have, by the names that LAYER uses."""
    head = config["head_dim"]
    return {
        "hidden": config["hidden_size"],
        "inner": config["intermediate_size"],
        "query": config["num_attention_heads"] * head,
        "key": config["num_key_value_heads"] * head,
    }


def _weights(source: GGUFSource, config: JsonObject) -> Iterator[_Weight]:
    """Every weight of the checkpoint, its shape checked; refuses a tensor that has no place in the model."""
    left = dict(source.tensors)

    def weight(name: str, gguf_name: str, shape: tuple[int, ...], head_rows: int = 0) -> _Weight:
        tensor = left.pop(f"{gguf_name}.weight", None)
        if tensor is None:
            source.refuse(f"tensor {gguf_name}.weight is missing", REFETCH)
        found = tuple(int(size) for size in reversed(tensor.shape))
        if found != shape:
            source.refuse(f"tensor {gguf_name}.weight has shape {found}, expected {shape}", RECONVERT)
        return _Weight(f"{name}.weight", shape, tensor, head_rows)

    sizes, table = _sizes(config), (config["vocab_size"], config["hidden_size"])
    yield weight("model.embed_tokens", "token_embd", table)
    for layer in range(config["num_hidden_layers"]):
        for short, (name, *dims) in LAYER.items():
            head_rows = config["head_dim"] if short in ("attn_q", "attn_k") else 0
            shape = tuple(sizes[dim] for dim in dims)
            yield weight(f"model.layers.{layer}.{name}", f"blk.{layer}.{short}", shape, head_rows)
    yield weight("model.norm", "output_norm", (config["hidden_size"],))
    if not config["tie_word_embeddings"]:
        yield weight("lm_head", "output", table)
    if left:
        source.refuse(f"tensor {min(left)} has no place in a plain llama model", OTHER_MODEL)


def _float_rows(source: GGUFSource, weight: _Weight) -> Iterator[npt.NDArray[np.float32]]:
    """The weight's values [rows, columns], a few rows or whole heads at a time, in Hugging Face row order.

    GGUF interleaves the two halves of each query and key head: its rows 2i and 2i + 1 are rows i and i + d/2.
    """
    tensor, unit = weight.tensor, weight.head_rows or 1
    rows = np.atleast_2d(tensor.data)
    step = unit * max(1, CHUNK_VALUES // (weight.shape[-1] * unit))
    for start in range(0, len(rows), step):
        try:
            values = gguf.quants.dequantize(rows[start : start + step], tensor.tensor_type)
        except NotImplementedError as e:
            kind = tensor.tensor_type.name
            source.refuse(f"tensor {tensor.name} has type {kind}, which cannot be read", RECONVERT, e)
        if not np.isfinite(values).all():
            source.refuse(f"tensor {tensor.name} holds NaN or infinity", REFETCH)
        if weight.head_rows:
            pairs = values.reshape(-1, unit // 2, 2, values.shape[-1])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        yield values
