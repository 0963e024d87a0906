"""GGUF import: exact tensors, config, tokenizer parity, refusals, and nothing left behind by a failed run."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from eecompile.errors import UsageError
from eecompile.student import gguf_import
from eecompile.student.gguf_import import checkpoint_from_gguf

Arrays = dict[str, npt.NDArray[np.float32]]

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD = 64, 96, 2, 4, 2, 16
CONTROL_TOKENS = ["<|end|>", "<|start|>"]
USER_TOKEN = "<think>"
SAMPLES = [
    "The quick brown fox can't jump over 12345 lazy dogs; don't they'LL say?",
    "def area(width, height):\n    return width * height  # 3.14159\n\n\n",
    " \t leading,   several   and trailing blanks  ",
    "naïve café – 漢字かな 한국어 🙂👩‍👩‍👧 ١٢٣ Ⅷ ½",
    "<|start|>user\nWhat is <think>this</think>?<|end|>\n",
    "line\r\nline\r\n\r\n  indented (a+b)[0]!!!",
    "",
]
DIGIT_SAMPLES = ["in  2024", "x = 1234567.89\n\n 42", "\t7  8   9", "a1b22c333"]

GGUF_NAME = {  # written out here so that a slip in the importer's own table shows
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    **{
        f"model.layers.{layer}.{name}.weight": f"blk.{layer}.{short}.weight"
        for layer in range(LAYERS)
        for name, short in [
            ("input_layernorm", "attn_norm"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("post_attention_layernorm", "ffn_norm"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
        ]
    },
}


def byte_level_vocabulary() -> tuple[list[str], list[str]]:
    """Tokens (control and user-defined ones last) and merges of a small byte-level BPE."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([*SAMPLES, *DIGIT_SAMPLES, Path(__file__).read_text("utf-8")], trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [" ".join(pair) for pair in model["merges"]]
    return [*sorted(model["vocab"], key=model["vocab"].get), *CONTROL_TOKENS, USER_TOKEN], merges


TOKENS, MERGES = byte_level_vocabulary()
END, START = len(TOKENS) - 3, len(TOKENS) - 2


def metadata(**changes: Any) -> dict[str, Any]:
    """The metadata of the tiny model with `changes`, where __ stands for a dot and None removes a key."""
    values: dict[str, Any] = {
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INNER,
        "llama.block_count": LAYERS,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 50000.0,
        "llama.rope.dimension_count": HEAD,
        "llama.context_length": 128,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [1] * (len(TOKENS) - 3) + [3, 3, 4],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": START,
        "tokenizer.ggml.eos_token_id": END,
        "tokenizer.ggml.padding_token_id": END,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{% for m in messages %}<|start|>{{ m['content'] }}<|end|>{% endfor %}",
    }
    values.update({key.replace("__", "."): value for key, value in changes.items()})
    return {key: value for key, value in values.items() if value is not None}


def random_weights(tied: bool = True) -> Arrays:
    """Hugging Face names and layout, values small enough for sane logits."""
    sizes = {
        "norm": (HIDDEN,),
        "embed_tokens": (len(TOKENS), HIDDEN),
        "lm_head": (len(TOKENS), HIDDEN),
        "q_proj": (HEADS * HEAD, HIDDEN),
        "k_proj": (KV_HEADS * HEAD, HIDDEN),
        "v_proj": (KV_HEADS * HEAD, HIDDEN),
        "o_proj": (HIDDEN, HEADS * HEAD),
        "gate_proj": (INNER, HIDDEN),
        "up_proj": (INNER, HIDDEN),
        "down_proj": (HIDDEN, INNER),
    }
    random = np.random.default_rng(7)
    names = [name for name in GGUF_NAME if not (tied and name.startswith("lm_head"))]
    kinds = {name: name.split(".")[-2] for name in names}
    shapes = {name: sizes["norm" if kind.endswith("norm") else kind] for name, kind in kinds.items()}
    return {name: random.normal(0.5, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}


def interleaved(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Query or key rows as GGUF orders them: in each head, row i of the first half then row i of the second."""
    order = [
        start + half + i for start in range(0, len(rows), HEAD) for i in range(HEAD // 2) for half in (0, HEAD // 2)
    ]
    return rows[order]


def write_gguf(
    path: Path,
    weights: Arrays,
    values: dict[str, Any] | None = None,
    *,
    architecture: str = "llama",
    types: dict[str, gguf.GGMLQuantizationType] | None = None,
    extra: Arrays | None = None,
) -> Path:
    """Write a GGUF of `weights` (Hugging Face layout), those named in `types` quantised; `extra` as they are."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (metadata() if values is None else values).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    for name, array in weights.items():
        array = interleaved(array) if "q_proj" in name or "k_proj" in name else array
        kind = (types or {}).get(name, gguf.GGMLQuantizationType.F32)
        data = gguf.quants.quantize(array, kind)
        writer.add_tensor(GGUF_NAME[name], data, raw_dtype=kind)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", random_weights())


def test_float_tensors_come_back_exactly(tmp_path: Path, tiny: Path) -> None:
    checkpoint_from_gguf(tiny, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    expected = random_weights()
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("chunk", [1, 700, 1 << 21])
def test_quantised_tensors_are_the_packages_own_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(gguf_import, "CHUNK_VALUES", chunk)
    kinds = gguf.GGMLQuantizationType
    types = {
        "model.embed_tokens.weight": kinds.Q8_0,
        "model.layers.0.self_attn.q_proj.weight": kinds.Q4_1,
        "model.layers.1.self_attn.k_proj.weight": kinds.Q8_0,
        "model.layers.1.mlp.down_proj.weight": kinds.BF16,
        "model.layers.1.mlp.up_proj.weight": kinds.F16,
    }
    weights = random_weights()
    checkpoint_from_gguf(write_gguf(tmp_path / "q.gguf", weights, types=types), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, kind in types.items():
        expected = gguf.quants.dequantize(gguf.quants.quantize(weights[name], kind), kind)
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


def test_config_says_what_the_metadata_says(tmp_path: Path, tiny: Path) -> None:
    checkpoint_from_gguf(tiny, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    expected = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "rms_norm_eps": 1e-5,
        "rope_theta": 50000.0,
        "vocab_size": len(TOKENS),
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "bos_token_id": START,
        "eos_token_id": END,
        "pad_token_id": END,
        "torch_dtype": "float32",
    }
    assert {key: config[key] for key in expected} == expected


def test_output_weight_unties_the_head(tmp_path: Path) -> None:
    weights = random_weights(tied=False)
    checkpoint_from_gguf(write_gguf(tmp_path / "untied.gguf", weights), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    found = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(found["lm_head.weight"], weights["lm_head.weight"])


def test_end_of_turn_is_a_second_end(tmp_path: Path) -> None:
    values = metadata(tokenizer__ggml__eot_token_id=START)
    checkpoint_from_gguf(write_gguf(tmp_path / "eot.gguf", random_weights(), values), tmp_path / "out")
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [END, START]


@pytest.mark.torch
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_the_original_models(tmp_path: Path, tied: bool) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    original = transformers.LlamaForCausalLM(config).eval()
    state = {name: value.numpy() for name, value in original.state_dict().items() if name in random_weights(tied)}
    checkpoint_from_gguf(write_gguf(tmp_path / "model.gguf", state), tmp_path / "out")
    load = transformers.AutoModelForCausalLM.from_pretrained
    imported, report = load(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(imported(ids).logits, original(ids).logits, rtol=0, atol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "smollm"])
def test_tokenizer_agrees_with_transformers(tmp_path: Path, pre: str) -> None:
    transformers = pytest.importorskip("transformers")
    values = metadata(tokenizer__ggml__pre=pre)
    write_gguf(tmp_path / "model.gguf", random_weights(), values)
    checkpoint_from_gguf(tmp_path / "model.gguf", tmp_path / "out")
    ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in [*SAMPLES, *DIGIT_SAMPLES]:
        if pre == "smollm" and any(c.isnumeric() for c in text):
            continue  # transformers ignores that smollm cuts out digits; the test below looks at those
        assert ours(text).input_ids == theirs(text).input_ids, text
        assert ours.decode(ours(text).input_ids) == text
    messages = [{"role": "user", "content": "hello"}]
    assert ours.apply_chat_template(messages, tokenize=False) == "<|start|>hello<|end|>"
    assert (ours.bos_token, ours.eos_token, ours.pad_token) == ("<|start|>", "<|end|>", "<|end|>")
    assert ours.decode([START, *ours("hi").input_ids, END], skip_special_tokens=True) == "hi"
    assert len(ours) == len(TOKENS)


def imported_tokenizer(folder: Path, **changes: Any) -> Tokenizer:
    checkpoint_from_gguf(write_gguf(folder / "model.gguf", random_weights(), metadata(**changes)), folder / "out")
    return Tokenizer.from_file(str(folder / "out" / "tokenizer.json"))


def test_smollm_cuts_out_every_digit_before_blanks_are_grouped(tmp_path: Path) -> None:
    tokenizer = imported_tokenizer(tmp_path)
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("in  2024")]
    assert pieces == ["in", "ĠĠ", "2", "0", "2", "4"]
    for text in DIGIT_SAMPLES:
        encoded = tokenizer.encode(text)
        assert all(len(token) == 1 for token in encoded.tokens if any(c.isdigit() for c in token))
        assert tokenizer.decode(encoded.ids) == text


@pytest.mark.parametrize(
    ("pre", "begin", "end", "expected"),
    [
        ("gpt-2", None, None, []),
        ("llama-bpe", None, None, [START]),
        ("llama-bpe", False, None, []),
        ("gpt-2", True, True, [START, END]),
    ],
)
def test_begin_and_end_tokens_are_added_as_asked(
    tmp_path: Path, pre: str, begin: bool | None, end: bool | None, expected: list[int]
) -> None:
    tokenizer = imported_tokenizer(
        tmp_path,
        tokenizer__ggml__pre=pre,
        tokenizer__ggml__add_bos_token=begin,
        tokenizer__ggml__add_eos_token=end,
    )
    ids = tokenizer.encode("word").ids
    assert [i for i in ids if i in (START, END)] == expected
    assert not expected or ids[0] == START
    assert end is None or ids[-1] == END


def refusal(source: Path, out: Path, **options: Any) -> str:
    """The message of the UsageError that the import raises; checks that it names the file and leaves nothing."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(UsageError) as caught:
        checkpoint_from_gguf(source, out, **options)
    assert caught.value.mend
    assert caught.value.where == str(source)
    assert sorted(out.parent.iterdir()) == before
    return str(caught.value)


def test_refuses_what_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "other").write_bytes(b"PK\x03\x04" * 9)
    assert "not a GGUF" in refusal(tmp_path / "empty", tmp_path / "out")
    assert "not a GGUF" in refusal(tmp_path / "other", tmp_path / "out")
    assert "cannot be read" in refusal(tmp_path / "absent", tmp_path / "out")
    assert "cannot be read" in refusal(tmp_path, tmp_path / "out")


def test_refuses_a_truncated_file_wherever_it_is_cut(tmp_path: Path, tiny: Path) -> None:
    content = tiny.read_bytes()
    cut = tmp_path / "cut.gguf"
    for end in [4, 8, 15, 23, *range(24, len(content), len(content) // 12), len(content) - 33]:
        cut.write_bytes(content[:end])
        assert "cut short or damaged" in refusal(cut, tmp_path / "out")


def test_a_corrupt_header_is_refused_or_read_but_never_a_crash(tmp_path: Path, tiny: Path) -> None:
    content = np.frombuffer(tiny.read_bytes(), np.uint8)
    random = np.random.default_rng(11)
    header = int(gguf.GGUFReader(tiny).data_offset)
    bad = tmp_path / "bad.gguf"
    for trial in range(40):
        damaged = content.copy()
        damaged[random.integers(4, header if trial % 2 else 200, 3)] = random.integers(0, 256, 3)
        bad.write_bytes(damaged.tobytes())
        with contextlib.suppress(UsageError):
            checkpoint_from_gguf(bad, tmp_path / f"out{trial}")


def test_a_numeric_array_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "long.gguf", {}, {"tokenizer.ggml.token_type": [1, 2, 3]})
    content = source.read_bytes()
    count = (3).to_bytes(8, "little") + (1).to_bytes(4, "little")
    assert content.count(count) == 1
    source.write_bytes(content.replace(count, (1 << 60).to_bytes(8, "little") + count[8:]))
    assert "cut short or damaged" in refusal(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama__embedding_length": None}, "llama.embedding_length is missing"),
        ({"llama__embedding_length": "64"}, "of type str, not int"),
        ({"llama__attention__head_count": 0}, "expected a positive number"),
        ({"llama__attention__head_count_kv": [2, 2]}, "of type list, not int"),
        ({"llama__attention__head_count_kv": 3}, "make no llama"),
        ({"llama__feed_forward_length": 80}, "has shape (96, 64), expected (80, 64)"),
        ({"llama__block_count": 3}, "blk.2.attn_norm.weight is missing"),
        ({"llama__block_count": 1}, "blk.1.attn_k.weight has no place"),
        ({"llama__rope__dimension_count": 8}, "differs from the head size 16"),
        ({"llama__rope__scaling__type": "yarn"}, "scaled rotary"),
        ({"llama__expert_count": 8}, "mixture of experts"),
        ({"tokenizer__ggml__model": "llama"}, "--no-tokenizer"),
        ({"tokenizer__ggml__model": None}, "tokenizer None is not supported"),
        ({"tokenizer__ggml__pre": "tekken"}, "known are gpt-2, smollm, qwen2, llama-bpe"),
        ({"tokenizer__ggml__tokens": TOKENS[:-3] + TOKENS[-4:]}, "not a list of distinct strings"),
        ({"tokenizer__ggml__tokens": [*TOKENS, "more"]}, "embeddings"),
        ({"tokenizer__ggml__merges": [*MERGES, "nowhere atall"]}, "does not join two tokens"),
        ({"tokenizer__ggml__merges": [*MERGES, "single"]}, "does not join two tokens"),
        ({"tokenizer__ggml__bos_token_id": 9999}, "bos token 9999"),
    ],
)
def test_refuses_what_it_cannot_express(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    source = write_gguf(tmp_path / "odd.gguf", random_weights(), metadata(**changes))
    assert message in refusal(source, tmp_path / "out")


def test_refuses_another_architecture(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "other.gguf", random_weights(), architecture="qwen2")
    assert "architecture is qwen2" in refusal(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"])
def test_refuses_a_missing_tensor(tmp_path: Path, name: str) -> None:
    weights = random_weights()
    del weights[name]
    message = refusal(write_gguf(tmp_path / "gap.gguf", weights), tmp_path / "out")
    assert f"{GGUF_NAME[name]} is missing" in message


def test_refuses_scaled_positions_and_unknown_tensors(tmp_path: Path) -> None:
    factors: Arrays = {"rope_freqs.weight": np.ones(HEAD // 2, np.float32)}
    source = write_gguf(tmp_path / "scaled.gguf", random_weights(), extra=factors)
    assert "scaled rotary" in refusal(source, tmp_path / "out")
    bias: Arrays = {"blk.0.attn_q.bias": np.ones(HIDDEN, np.float32)}
    source = write_gguf(tmp_path / "bias.gguf", random_weights(), extra=bias)
    assert "blk.0.attn_q.bias has no place" in refusal(source, tmp_path / "out")


def test_imports_an_unsupported_tokenizers_model_without_it(tmp_path: Path) -> None:
    values = metadata(tokenizer__ggml__model="llama")
    source = write_gguf(tmp_path / "spm.gguf", random_weights(), values)
    checkpoint_from_gguf(source, tmp_path / "out", tokenizer=False)
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"config.json", "generation_config.json", "model.safetensors"}


def test_a_late_failure_leaves_nothing(tmp_path: Path) -> None:
    weights = random_weights()
    weights["model.norm.weight"][5] = np.nan  # the last tensor written
    assert "NaN or infinity" in refusal(write_gguf(tmp_path / "nan.gguf", weights), tmp_path / "out")


def test_a_killed_run_leaves_no_checkpoint_and_does_not_block_the_next(tmp_path: Path, tiny: Path) -> None:
    script = (
        "import os, pathlib, sys; from eecompile.student import gguf_import as g\n"
        "g.write_safetensors = lambda *_: os._exit(9)\n"
        "g.checkpoint_from_gguf(*map(pathlib.Path, sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, str(tiny), str(tmp_path / "out")]
    root = Path(gguf_import.__file__).parents[2]
    assert subprocess.run(command, cwd=root, check=False).returncode == 9
    assert not (tmp_path / "out").exists()
    checkpoint_from_gguf(tiny, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_an_existing_output_is_not_overwritten(tmp_path: Path, tiny: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(UsageError, match="already exists"):
        checkpoint_from_gguf(tiny, out)
    assert [file.name for file in out.iterdir()] == ["mine"]
    (out / "mine").unlink()
    checkpoint_from_gguf(tiny, out)


def test_importing_needs_no_torch() -> None:
    script = "import sys, eecompile.student.gguf_import; sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    root = Path(gguf_import.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", script], cwd=root, check=False).returncode == 0
