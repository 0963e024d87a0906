"""Converts a llama-architecture GGUF file into a Hugging Face checkpoint directory, without torch.

Weights are dequantised to float32 a few rows at a time straight into `model.safetensors`, so peak memory does
not grow with the model. The tokenizer is rebuilt from the file's own metadata. The directory is written beside
its final name and renamed once it is complete.
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
JsonObject = dict[str, Any]

CHUNK_VALUES = 1 << 21  # float32 values dequantised at a time (8 MB)
CONTROL, USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # Hugging Face role -> GGUF role
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
LLAMA_3 = ("llama-bpe", "llama-v3", "llama3")  # synonyms in tokenizer.ggml.pre
REFETCH = "fetch the file again and compare its size and sha256"
RECONVERT = "convert the model to GGUF again"
OTHER_MODEL = "use a plain llama model"
NO_TOKENIZER = "import with tokenizer=False and add the model's own tokenizer.json"


def checkpoint_from_gguf(gguf_path: Path, out: Path, *, tokenizer: bool = True) -> None:
    """Write the checkpoint held by `gguf_path` as directory `out`, which must not exist yet (or be empty).

    `out` receives config.json, generation_config.json, model.safetensors (float32) and, unless `tokenizer` is
    false, tokenizer.json, tokenizer_config.json and special_tokens_map.json. It is complete or absent at all
    times. Raises UsageError where the file is not a whole llama GGUF or its tokenizer is not byte-level BPE.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("the output already exists", where=str(out), mend="remove it or name another")
    source = _opened(gguf_path)
    config = _config(source)
    weights = list(_weights(source, config))
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
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


class _Reader(gguf.GGUFReader):  # type: ignore[misc]
    """The package's reader, but a read past the end of the file fails; its own returns less, or loops for ever."""

    def _get(self, offset: int, dtype: npt.DTypeLike, count: int = 1, *rest: Any, **named: Any) -> Any:
        if offset + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError(f"{count} values at {offset} lie past the end")
        return super()._get(offset, dtype, count, *rest, **named)


@dataclass(frozen=True)
class _Source:
    """An open GGUF file: its metadata, and its memory-mapped tensors by name."""

    path: Path
    reader: Any
    tensors: dict[str, Any]

    def refuse(self, what: str, mend: str, cause: Exception | None = None) -> NoReturn:
        raise UsageError(what, where=str(self.path), mend=mend) from cause

    def get(self, key: str, kind: type[T]) -> T | None:
        """The metadata value of `key`, None where it is absent; floats are rounded to float32's shortest form."""
        field = self.reader.get_field(key)
        if field is None:
            return None
        try:
            value = field.contents()
        except ValueError as e:
            self.refuse(f"metadata {key} is not valid text", REFETCH, e)
        if kind is float and type(value) in (int, float):
            value = float(str(np.float32(value)))
        if type(value) is not kind:
            self.refuse(f"metadata {key} is of type {type(value).__name__}, not {kind.__name__}", RECONVERT)
        return value

    def need(self, key: str, kind: type[T], default: T | None = None) -> T:
        """As `get`, but refuses an absent value without a default and a number that is not positive and finite."""
        value = self.get(key, kind)
        value = default if value is None else value
        if value is None:
            self.refuse(f"metadata {key} is missing", RECONVERT)
        if isinstance(value, (int, float)) and not 0 < value < float("inf"):
            self.refuse(f"metadata {key} is {value}, expected a positive number", RECONVERT)
        return value

    def strings(self, key: str) -> list[str]:
        """The distinct strings of the array `key`."""
        values = self.need(key, list)
        if not all(isinstance(value, str) for value in values) or len(set(values)) != len(values):
            self.refuse(f"metadata {key} is not a list of distinct strings", RECONVERT)
        return values


@dataclass(frozen=True)
class _Weight:
    """A tensor of the checkpoint and its source; `head_rows` > 0: rows are interleaved within such heads."""

    name: str
    shape: tuple[int, ...]
    tensor: Any
    head_rows: int = 0


def _opened(path: Path) -> _Source:
    """Parse the GGUF header; refuse what is no GGUF, is cut short, or is of another architecture."""
    where = str(path)
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
    except OSError as e:
        raise UsageError(f"cannot be read: {e.strerror}", where=where, mend="name a readable file") from e
    if magic != b"GGUF":
        raise UsageError("this is not a GGUF file", where=where, mend="name a file that starts with GGUF")
    try:
        reader = _Reader(path)
    except (ValueError, IndexError, KeyError, OverflowError, RecursionError) as e:
        raise UsageError("the GGUF file is cut short or damaged", where=where, mend=REFETCH) from e
    source = _Source(path, reader, {tensor.name: tensor for tensor in reader.tensors})
    if reader.byte_order != "I":
        source.refuse("the file is in foreign byte order", RECONVERT)
    architecture = source.get("general.architecture", str)
    if architecture != "llama":
        source.refuse(f"the architecture is {architecture}; only llama can be imported", OTHER_MODEL)
    return source


def _config(source: _Source) -> JsonObject:
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


def _check_supported(source: _Source, config: JsonObject) -> None:
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


def _generation_config(source: _Source, config: JsonObject) -> JsonObject:
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


def _weights(source: _Source, config: JsonObject) -> Iterator[_Weight]:
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


def _write_safetensors(source: _Source, weights: list[_Weight], stream: BinaryIO) -> None:
    """Write the header (8-byte little-endian length, JSON), then every weight in order as float32."""
    header: JsonObject = {"__metadata__": {"format": "pt"}}
    end = 0
    for weight in weights:
        start, end = end, end + 4 * int(np.prod(weight.shape, dtype=np.int64))
        header[weight.name] = {"dtype": "F32", "shape": weight.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for weight in weights:
        for values in _float_rows(source, weight):
            stream.write(values.astype("<f4").tobytes())


def _float_rows(source: _Source, weight: _Weight) -> Iterator[npt.NDArray[np.float32]]:
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


def _write_tokenizer(source: _Source, config: JsonObject, out: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json into `out`."""
    model = source.get("tokenizer.ggml.model", str)
    if model != "gpt2":
        source.refuse(f"tokenizer {model} is not supported, only gpt2 (byte-level BPE)", NO_TOKENIZER)
    vocabulary = {token: token_id for token_id, token in enumerate(source.strings("tokenizer.ggml.tokens"))}
    if len(vocabulary) > config["vocab_size"]:
        source.refuse(f"{len(vocabulary)} tokens for {config['vocab_size']} embeddings", NO_TOKENIZER)
    special = _special_tokens(source, list(vocabulary))
    _byte_level_bpe(source, vocabulary, special).save(str(out / "tokenizer.json"))
    template = source.get("tokenizer.chat_template", str)
    settings: JsonObject = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        **special,
        **({"chat_template": template} if template else {}),
    }
    _write_json(out / "tokenizer_config.json", settings)
    _write_json(out / "special_tokens_map.json", special)


def _special_tokens(source: _Source, tokens: list[str]) -> dict[str, str]:
    """The token of each role that the file names: bos_token, eos_token, unk_token, pad_token."""
    special = {}
    for role, gguf_role in ROLES.items():
        token_id = source.get(f"tokenizer.ggml.{gguf_role}_token_id", int)
        if token_id is not None:
            if not 0 <= token_id < len(tokens):
                source.refuse(f"{role} token {token_id} is not among the {len(tokens)}", NO_TOKENIZER)
            special[f"{role}_token"] = tokens[token_id]
    return special


def _byte_level_bpe(source: _Source, vocabulary: dict[str, int], special: dict[str, str]) -> Any:
    """The byte-level BPE `tokenizers.Tokenizer` of the file; its control tokens are matched whole in any text."""
    pre = source.get("tokenizer.ggml.pre", str)
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        source.refuse(f"pre-tokenizer {pre} is not known; known are {known}", NO_TOKENIZER)
    pairs = (merge.partition(" ") for merge in source.strings("tokenizer.ggml.merges"))
    merges = [(left, right) for left, _, right in pairs]
    if not all({left, right, left + right} <= vocabulary.keys() for left, right in merges):
        source.refuse("a merge does not join two tokens into a third", NO_TOKENIZER)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in LLAMA_3))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(vocabulary, source.need("tokenizer.ggml.token_type", list, []), strict=False)
    whole = {token: kind for token, kind in kinds if kind in (CONTROL, USER_DEFINED)}
    tokenizer.add_tokens([AddedToken(t, special=k == CONTROL, normalized=False) for t, k in whole.items()])
    _add_ends(source, tokenizer, special, default_begin=pre in LLAMA_3)
    return tokenizer


def _add_ends(source: _Source, tokenizer: Any, special: dict[str, str], default_begin: bool) -> None:
    """Have the begin and end tokens put around every text where the file asks for them."""
    begin = source.get("tokenizer.ggml.add_bos_token", bool)
    begin = default_begin if begin is None else begin  # llama.cpp's default: Llama 3 alone has one
    first = [special["bos_token"]] if begin and "bos_token" in special else []
    end = source.get("tokenizer.ggml.add_eos_token", bool)
    last = [special["eos_token"]] if end and "eos_token" in special else []
    if first or last:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            pair=[*first, "$A", *last, *first, "$B", *last],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in {*first, *last}],
        )


def _pieces(digits: str) -> Any:
    """The cut that Llama 3 and Qwen 2 share: contractions, words, `digits`, punctuation, line ends, blanks."""
    contraction = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    word, punctuation = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*"
    pattern = "|".join([contraction, word, digits, punctuation, r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


GPT_2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
PRE_TOKENIZERS = {  # how text is cut before the merges apply, by tokenizer.ggml.pre
    "gpt-2": GPT_2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT_2]),
    "qwen2": _pieces(r"\p{N}"),
    **dict.fromkeys(LLAMA_3, _pieces(r"\p{N}{1,3}")),
}


def _write_json(path: Path, content: JsonObject) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
