"""Tokenizers made for tests: trained small, or built so that their ids show every byte and bound of a part's work."""

import json
import random
from collections.abc import Iterator
from functools import cache

import pytest
from real_inputs import INPUTS
from tokenizer_texts import source_texts
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
HAN = "[一-龥぀-ゟ゠-ヿ]+"
REGEXES = {"gpt2": GPT2, "llama3": LLAMA3, "qwen2": QWEN2, "gpt4o": GPT4O, "deepseek": DEEPSEEK, "han": HAN,
           "digits": r"\d", "words": r"\w+", "blanks": r"\s{2,}|\W", "ahead": r"a+(?=\S)", "threes": r"\p{N}{1,3}",
           "order": r"a+(?:ab|\.)?|\n(?:\n| )?"}  # fmt: skip
BEHAVIOURS = ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous")


def microscope(
    normalizer: normalizers.Normalizer | None = None, pre: pre_tokenizers.PreTokenizer | None = None
) -> Tokenizer:
    """Every byte is a token, a last byte of a piece another one: ids show what the parts made of the text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char + end: i * 2 + bool(end) for i, char in enumerate(alphabet) for end in ("", "</w>")}
    tokenizer = Tokenizer(models.BPE(vocab, [], end_of_word_suffix="</w>"))
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre, as_bytes]) if pre else as_bytes
    if normalizer:
        tokenizer.normalizer = normalizer
    return tokenizer


def normalizer_parts() -> dict[str, normalizers.Normalizer]:
    """Every normaliser with every setting that matters."""
    bert = {
        f"bert-{clean:d}{chinese:d}{accents}{lower:d}": normalizers.BertNormalizer(clean, chinese, accents, lower)
        for clean, chinese, accents, lower in (
            (True, True, None, True), (True, False, None, False), (False, True, True, False), (True, True, False, True)
        )
    }  # fmt: skip
    strips = {
        f"strip-{left}{right}": normalizers.Strip(left, right) for left in (False, True) for right in (False, True)
    }
    return bert | strips | {
        "nfc": normalizers.NFC(), "nfd": normalizers.NFD(), "nfkc": normalizers.NFKC(), "nfkd": normalizers.NFKD(),
        "lowercase": normalizers.Lowercase(), "accents": normalizers.StripAccents(), "nmt": normalizers.Nmt(),
        "bytes": normalizers.ByteLevel(), "prepend": normalizers.Prepend("▁x"),
        "replace": normalizers.Replace(" ", "▁"), "replace-regex": normalizers.Replace(Regex(" {2,}|\\p{N}+"), "+"),
        "precompiled": charsmap(), "clusters": cluster_map(),
        "sequence": normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]),
        "no accents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.NFC()]),
    }  # fmt: skip


def pre_tokenizer_parts() -> dict[str, pre_tokenizers.PreTokenizer]:
    """Every pre-tokeniser with every setting that matters."""
    made = {name: pre_tokenizers.Split(Regex(regex), "isolated") for name, regex in REGEXES.items()}
    for behaviour in BEHAVIOURS:
        made[f"split-{behaviour}"] = pre_tokenizers.Split(Regex(r"\p{P}|\s"), behaviour)
        made[f"inverted-{behaviour}"] = pre_tokenizers.Split(Regex(r"\p{L}+"), behaviour, invert=True)
        made[f"literal-{behaviour}"] = pre_tokenizers.Split("a", behaviour)
        made[f"punctuation-{behaviour}"] = pre_tokenizers.Punctuation(behaviour)
    for scheme in ("always", "first", "never"):
        for split in (True, False):
            made[f"metaspace-{scheme}-{split:d}"] = pre_tokenizers.Metaspace("▁", scheme, split)
    made |= {f"digits-{i:d}": pre_tokenizers.Digits(i) for i in (True, False)}
    made |= {f"bytes-{i:d}": pre_tokenizers.ByteLevel(i, use_regex=True) for i in (True, False)}
    made["sequence"] = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"), pre_tokenizers.Split(Regex(HAN), "isolated"),
         pre_tokenizers.Split(Regex(DEEPSEEK), "isolated")]
    )  # fmt: skip
    return made | {
        "whitespace": pre_tokenizers.Whitespace(), "whitespace-split": pre_tokenizers.WhitespaceSplit(),
        "bert": pre_tokenizers.BertPreTokenizer(),
    }  # fmt: skip


def charsmap() -> normalizers.Normalizer:
    """A compiled map: some letters, marks, clusters and blanks to more, fewer or no characters."""
    table = {"ﬁ": "fi", "Å": "A\u030a", "e\u0301": "é", "a\u0308": "ä", "①": "1", "\u200b": "", "\u00ad": "", "\t": " ",
             "㌀": "アパート", "\u3000": " ", "©": "(c)", "x": "X",
             "\u0915\u094d": "k", "ᄀ": "g", "🙂": ":)", "\u0301": ""}  # fmt: skip
    return compiled({key.encode(): value for key, value in table.items()})


def cluster_map() -> normalizers.Normalizer:
    """A compiled map that writes one x for each unit that is looked up: where grapheme clusters end shows."""
    return compiled({bytes([byte]): "x" for byte in range(1, 256)})


def compiled(table: dict[bytes, str]) -> normalizers.Normalizer:
    """The map from beginnings of texts to what they become."""
    pool, ends = b"", {}
    for key, value in table.items():
        ends[key] = len(pool)
        pool += value.encode() + b"\0"
    trie = b"".join(cell.to_bytes(4, "little") for cell in double_array(ends))
    return normalizers.Precompiled(len(trie).to_bytes(4, "little") + trie + pool)


def double_array(values: dict[bytes, int]) -> list[int]:
    """A darts-clone trie of `values`: first fit, nothing clever."""
    children: dict[bytes, set[int]] = {}
    for key in values:
        for i in range(len(key)):
            children.setdefault(key[:i], set()).add(key[i])
    cells: dict[int, int] = {0: 0}
    todo = [(b"", 0)]
    while todo:
        prefix, place = todo.pop()
        labels = sorted(children.get(prefix, ())) + ([0] if prefix in values else [])
        if not labels:
            continue
        offset = next(o for o in range(1, 1 << 20) if all((place ^ o ^ label) not in cells for label in labels))
        cells[place] |= offset << 10 | (prefix in values) << 8
        for label in labels:
            cells[place ^ offset ^ label] = label or 1 << 31 | values[prefix]
            if label:
                todo.append((prefix + bytes([label]), place ^ offset ^ label))
    return [cells.get(i, 1 << 31) for i in range(max(cells) + 257)]


def trained() -> Iterator[tuple[str, Tokenizer]]:
    """Small models of each kind, trained on English and code, with added tokens of every kind."""
    for name, regex in (("gpt2", None), ("llama3", LLAMA3), ("qwen2", QWEN2), ("gpt4o", GPT4O)):
        yield name, with_added(byte_bpe(regex, ignore_merges=name == "llama3", nfc=name == "qwen2"))
    yield "llama2", with_added(llama2())
    yield "word-end", with_added(clip())
    yield "continued", with_added(continued_bpe())
    yield "wordpiece", with_added(word_piece())
    for fallback in (False, True):
        yield f"unigram-{fallback:d}", with_added(unigram(fallback))


def with_added(tokenizer: Tokenizer, blank: str = "  ") -> Tokenizer:
    """`tokenizer` with added tokens of every kind of flag. One that its normaliser leaves nothing of would keep the
    library looking for it until memory runs out."""
    tokenizer.add_tokens(
        [AddedToken("<|x0|>"), AddedToken("<|x1|>", lstrip=True), AddedToken("<|x2|>", rstrip=True),
         AddedToken("<|x3|>", single_word=True), AddedToken("<|x4|>", normalized=False),
         AddedToken("<|x5|>", lstrip=True, rstrip=True), AddedToken("YES", single_word=True, normalized=True),
         AddedToken("no", normalized=False), AddedToken(blank)]
    )  # fmt: skip
    tokenizer.add_special_tokens(
        [AddedToken("<|end|>"), AddedToken("<|end", rstrip=True), AddedToken("Ünï", normalized=True)]
    )
    return tokenizer


def byte_bpe(regex: str | None, ignore_merges: bool, nfc: bool) -> Tokenizer:
    """GPT-2's shape, or that with another pattern."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    split = pre_tokenizers.Split(Regex(regex or GPT2), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level]) if regex else byte_level
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    train(
        tokenizer,
        trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False),
    )
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 0)]),
        ]
    )
    return tokenizer


def llama2() -> Tokenizer:
    """BPE of whole texts with byte fallback, spaces marked by normalisers."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # else training takes lines as words
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    train(tokenizer, trainers.BpeTrainer(vocab_size=1200, special_tokens=special, show_progress=False))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made = json.loads(tokenizer.to_str())
    made["pre_tokenizer"] = None
    made["added_tokens"] = [t for t in made["added_tokens"] if not t["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(made))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    return tokenizer


def clip() -> Tokenizer:
    """BPE with a mark at the end of words."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    train(
        tokenizer,
        trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False),
    )
    return tokenizer


def continued_bpe() -> Tokenizer:
    """BPE with a mark on what continues words, unknown characters kept apart."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(False), pre_tokenizers.Punctuation()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>"], continuing_subword_prefix="##", show_progress=False
    )
    train(tokenizer, trainer)
    tokenizer.decoder = decoders.WordPiece("##", cleanup=False)
    return tokenizer


def word_piece() -> Tokenizer:
    """BERT's shape, cased."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=20))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    train(
        tokenizer,
        trainers.WordPieceTrainer(vocab_size=900, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False),
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.decoder = decoders.WordPiece("##")
    return tokenizer


def unigram(byte_fallback: bool) -> Tokenizer:
    """T5's shape; with byte fallback, newer ones'."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([charsmap(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first" if byte_fallback else "always", True)
    special = ["<pad>", "</s>", "<unk>", *(f"<0x{i:02X}>" for i in range(256) if byte_fallback)]
    trainer = trainers.UnigramTrainer(vocab_size=900, special_tokens=special, unk_token="<unk>", show_progress=False)
    train(tokenizer, trainer)
    made = json.loads(tokenizer.to_str())
    made["model"]["byte_fallback"] = byte_fallback
    made["added_tokens"] = [t for t in made["added_tokens"] if not t["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(made))
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    metaspace = decoders.Metaspace("▁", "first" if byte_fallback else "always")
    tokenizer.decoder = decoders.Sequence([metaspace, decoders.ByteFallback()]) if byte_fallback else metaspace
    return tokenizer


def train(tokenizer: Tokenizer, trainer: trainers.Trainer) -> None:
    """Train on the same part of the texts each time."""
    lines = source_texts()
    tokenizer.train_from_iterator(random.Random(0).sample(lines, 3000), trainer)


def decoder_parts() -> dict[str, decoders.Decoder | None]:
    """Every decoder, and those that see the parts of one token behind one that fuses."""
    metaspaces = {f"metaspace-{scheme}": decoders.Metaspace("▁", scheme) for scheme in ("always", "first", "never")}
    after = {
        "replace": decoders.Replace("▁a", " "), "metaspace": decoders.Metaspace("▁", "always"),
        "wordpiece": decoders.WordPiece("##"), "fallback": decoders.ByteFallback(), "bytes": decoders.ByteLevel(),
        "start": decoders.Strip("_", 3, 0), "both": decoders.Strip("_", 1, 2), "fuse": decoders.Fuse(),
    }  # fmt: skip
    fused = {f"fused-{name}": decoders.Sequence([decoders.Fuse(), part]) for name, part in after.items()}
    del fused["fused-both"]  # the library panics on a text of special tokens only
    listed = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return metaspaces | after | fused | {
        "none": None, "plain": decoders.WordPiece("##", cleanup=False), "llama": decoders.Sequence(listed),
        "regex": decoders.Replace(Regex("[a-c]+"), "-"),
        "bytes-start": decoders.Sequence([decoders.ByteLevel(), decoders.Strip("_", 2, 0)]),
    }  # fmt: skip


def decoding(decoder: decoders.Decoder | None) -> Tokenizer:
    """A tokenizer of a few tokens that decoders treat specially; no text is meant to be encoded."""
    tokens = ["[UNK]", "▁", "▁a", "a", "b▁", "##c", "##", "_d_", "__e", "f__", ".", " .", "n't", "'s", " do not",
              "<0xE6>", "<0xBC>", "<0xA2>", "<0xF0>", "<0x41>", "<0x+A>", "<0xZZ>", "æ", "¼", "¢", "ð", "Ł", "Ġ", "Ċ",
              "漢", "aé", "🙂", "é", "x y", " ' "]  # fmt: skip
    tokenizer = Tokenizer(models.WordPiece({token: i * 2 for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["<s>", "[UNK]"])
    tokenizer.add_tokens(["▁added"])
    if decoder is not None:
        tokenizer.decoder = decoder
    return tokenizer


def first_parts() -> dict[str, Tokenizer]:
    """Metaspace's scheme "first" behind what moves or takes away the beginning of texts."""
    names = (
        "strip-TrueTrue",
        "strip-TrueFalse",
        "replace",
        "precompiled",
        "nfc",
        "nfkd",
        "prepend",
        "accents",
        "bert-11None1",
        "nmt",
    )
    metaspace = pre_tokenizers.Metaspace("▁", "first", True)
    split = pre_tokenizers.Sequence([pre_tokenizers.Punctuation("removed"), metaspace])
    parts = normalizer_parts()
    found = {f"first-{name}": microscope(parts[name], split if i % 2 else metaspace) for i, name in enumerate(names)}
    return {name: with_added(tokenizer, blank="a  b") for name, tokenizer in found.items()}


REAL = ("smollm2", "rampart", "minilm")
TRAINED = ("gpt2", "llama3", "qwen2", "gpt4o", "llama2", "word-end", "continued", "wordpiece", "unigram-0", "unigram-1")


@cache
def all_trained() -> dict[str, Tokenizer]:
    """The trained tokenizers by name."""
    return dict(trained())


def tokenizer_of(name: str) -> Tokenizer:
    """A real or trained tokenizer as the runtime uses it; skips where the real one is absent."""
    if name not in REAL:
        return all_trained()[name]
    file = INPUTS / name / "tokenizer.json"
    if not file.exists():
        pytest.skip(f"build/inputs/{name} is absent: run tools/inputs.py {name}")
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
