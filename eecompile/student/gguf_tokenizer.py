"""The tokenizer inside a GGUF file, as the files that Hugging Face libraries read."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from eecompile.student.gguf_source import NO_TOKENIZER, GGUFSource

JsonObject = dict[str, Any]

CONTROL, USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # Hugging Face role -> GGUF role
LLAMA_3 = ("llama-bpe", "llama-v3", "llama3")  # synonyms in tokenizer.ggml.pre


def write_tokenizer(source: GGUFSource, config: JsonObject, out: Path) -> None:
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
    write_json(out / "tokenizer_config.json", settings)
    write_json(out / "special_tokens_map.json", special)


def _special_tokens(source: GGUFSource, tokens: list[str]) -> dict[str, str]:
    """The token of each role that the file names: bos_token, eos_token, unk_token, pad_token."""
    special = {}
    for role, gguf_role in ROLES.items():
        token_id = source.get(f"tokenizer.ggml.{gguf_role}_token_id", int)
        if token_id is not None:
            if not 0 <= token_id < len(tokens):
                source.refuse(f"{role} token {token_id} is not among the {len(tokens)}", NO_TOKENIZER)
            special[f"{role}_token"] = tokens[token_id]
    return special


def _byte_level_bpe(source: GGUFSource, vocabulary: dict[str, int], special: dict[str, str]) -> Any:
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


def _add_ends(source: GGUFSource, tokenizer: Any, special: dict[str, str], default_begin: bool) -> None:
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


def write_json(path: Path, content: JsonObject) -> None:
    """Write readable JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
