"""Tiny random checkpoints and the bundles built of them: small enough for hundreds, alive enough to tell faults apart.

Norms and biases are away from one and zero and the matrices are large, so that no tensor can be dropped unseen. Nothing
here needs torch, except what says so.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tiny_configs import FAMILY as FAMILY
from tiny_configs import VOCAB as VOCAB
from tiny_configs import Config as Config
from tiny_configs import config as config
from tiny_configs import gpt2 as gpt2
from tiny_configs import llama_variants as llama_variants
from tiny_configs import other_variants as other_variants
from tiny_configs import variants as variants
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from eecompile import contract as c
from eecompile.bundle.digest import gates_digest
from eecompile.bundle.write import write_overlay
from eecompile.engines.ort import use_threads
from eecompile.pipeline import BuildOptions, build
from eecompile.runtime import Bundle, Sampling
from eecompile.runtime.heads import Head
from eecompile.runtime.staircase import Staircase
from eecompile.shapes import HeadShape, weight_shapes
from eecompile.student.exits import EarlyExit, ExitSpec, save_exits
from eecompile.student.families import spec_from_config
from eecompile.student.loops import Loops
from eecompile.student.modules import MODULES, module_shapes
from eecompile.student.student import open_student
from eecompile.target import load_target

Float = NDArray[np.float32]
SPECIAL = ["<s>", "<|start|>", "<|end|>"]
TOKENIZER_IDS = 256 + 2 + len(SPECIAL)  # what `add_tokenizer` knows
CHAT = (
    "{% if messages[0]['role'] == 'assistant' %}{{ raise_exception('the user begins') }}{% endif %}{{ bos_token }}"
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
PRECISIONS = tuple(load_target("cpu").precisions)  # the others are for engines
DTYPES = {"float32": ("F32", np.float32), "float16": ("F16", np.float16), "bfloat16": ("BF16", ml_dtypes.bfloat16)}


def digest(text: str) -> str:
    """A short name for whatever `text` describes."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def weights(settings: Mapping[str, Any], seed: int = 0, *, gain: float = 1.0) -> dict[str, Float]:
    """Random tensors for `settings` by checkpoint name; `gain` scales what the layers add to the embeddings."""
    rng, spec = np.random.default_rng(seed), spec_from_config(settings)
    transposed = {view.tensor for view in spec.views().values() if view.transposed}
    tensors: dict[str, Float] = {}
    for name, shape in spec.tensors().items():
        values = rng.standard_normal(shape)
        if name.endswith(".bias"):
            values = 0.5 * values
        elif len(shape) == 1:
            values = np.exp(0.4 * values)
        elif name.endswith("relative_attention_bias.weight"):
            values *= 2
        elif name not in (spec.names.embed, spec.names.positions):
            inputs = shape[0] if name in transposed else shape[1]
            values *= (gain if name.endswith(OUTPUTS) else 1.5) / np.sqrt(inputs)
            if name.endswith("Attention.q.weight"):  # of a model that does not scale scores
                values /= np.sqrt(spec.head_dim)
        tensors[name] = values.astype(np.float32)
    return tensors


OUTPUTS = (  # what attention and MLP add to the hidden state
    ".o.weight", "wo.weight",
    "o_proj.weight", "down_proj.weight", "c_proj.weight", "dense.weight", "dense_4h_to_h.weight", "fc2.weight",
)  # fmt: skip


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]], dtype: str = "float32") -> None:
    """A safetensors file of one dtype, written here so that the reader has a second opinion."""
    label, numpy_dtype = DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data, offset = [], 0
    for name, tensor in tensors.items():
        raw = np.ascontiguousarray(tensor.astype(numpy_dtype)).tobytes()
        header[name] = {"dtype": label, "shape": list(tensor.shape), "data_offsets": [offset, offset + len(raw)]}
        data.append(raw)
        offset += len(raw)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))


def checkpoint(
    path: Path, settings: Config | None = None, tensors: Mapping[str, Float] | None = None, *,
    dtype: str = "float32", seed: int = 0, gain: float = 1.0,
) -> Path:  # fmt: skip
    """Write a checkpoint directory and return it."""
    settings = config() if settings is None else settings
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(settings))
    tensors = weights(settings, seed, gain=gain) if tensors is None else tensors
    write_safetensors(path / "model.safetensors", tensors, dtype)
    return path


def byte_character(value: int) -> str:
    """The character that stands for a byte in byte-level vocabularies (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return chr(value if value in plain else 256 + others.index(value))


def add_tokenizer(path: Path, **settings: Any) -> Path:
    """Give a checkpoint a byte-level tokenizer: 256 bytes, two merges, three special tokens, and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "th", "the"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": SPECIAL[0], "chat_template": CHAT, **settings})
    )
    return path


def add_exits(
    path: Path, exits: Sequence[ExitSpec], seed: int = 0, heads: Sequence[HeadShape] = (), *,
    loops: Loops | None = None, gain: float = 1.0,
) -> Path:  # fmt: skip
    """Give a checkpoint exits with random gates and modules, affine adapters near the identity, and random small heads;
    and a schedule `loops`, with LoRA about as large as `gain` times the weights."""
    tensors = exit_tensors(path, exits, seed, heads) | factor_tensors(path, loops, seed, gain)
    save_exits(path, EarlyExit(exits=list(exits), heads=list(heads), schedule=loops), tensors)
    return path


def factor_tensors(path: Path, loops: Loops | None, seed: int = 0, gain: float = 1.0) -> dict[str, Float]:
    """Random LoRA for a schedule on the checkpoint at `path`."""
    if loops is None:
        return {}
    rng, tensors = np.random.default_rng(seed), {}
    for name, shape in loops.factor_shapes(spec_from_config(json.loads((path / "config.json").read_text()))).items():
        scale = gain / np.sqrt(loops.rank) if name.endswith(".b") else 1 / np.sqrt(shape[1])
        tensors[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
    return tensors


def exit_tensors(
    path: Path, exits: Sequence[ExitSpec], seed: int = 0, heads: Sequence[HeadShape] = ()
) -> dict[str, Float]:  # fmt: skip
    """Random tensors for the exits and heads of the checkpoint at `path`."""
    rng, tensors = np.random.default_rng(seed), {}
    spec = spec_from_config(json.loads((path / "config.json").read_text()))
    hidden, vocab = spec.hidden, spec.vocab
    for e in exits:
        if e.adapter == "affine":
            tensors[f"exit.{e.layer}.adapter.weight"] = np.eye(hidden) + 0.1 * rng.standard_normal((hidden, hidden))
            tensors[f"exit.{e.layer}.adapter.bias"] = 0.1 * rng.standard_normal(hidden)
        if e.adapter in MODULES:
            for name, shape in module_shapes(spec, e).items():
                values = rng.standard_normal(shape)
                is_norm = len(shape) == 1 and not name.endswith(".bias")
                tensors[name] = np.exp(0.4 * values) if is_norm else values / np.sqrt(shape[-1])
        for kind, (inputs, units, outputs) in e.gate_sizes(hidden).items():
            shapes = weight_shapes(inputs, units, outputs)
            scale = 1.0 if kind == "gate" else 1 / np.sqrt(units or inputs)
            tensors |= {f"exit.{e.layer}.{kind}.{p}": scale * rng.standard_normal(s) for p, s in shapes.items()}
    for head in heads:
        if head.kind == "low_rank":
            tensors[f"head.{head.name}.down"] = rng.standard_normal((head.rank, hidden)) / np.sqrt(hidden)
            tensors[f"head.{head.name}.up"] = 2 * rng.standard_normal((vocab, head.rank))
        if head.bias:
            tensors[f"head.{head.name}.bias"] = rng.standard_normal(vocab)
    return {n: t.astype(np.float32) for n, t in tensors.items()}


def bundle_at(out: Path, source: Path, at: Sequence[int] = (), **options: Any) -> Path:
    """Build the checkpoint for the CPU; `at` declares exits, `options` are BuildOptions'."""
    build(open_student(source, at), load_target("cpu"), out, BuildOptions(**options))
    return out


def open_bundle(out: Path, source: Path, at: Sequence[int] = (), **options: Any) -> Bundle:
    """Build and open."""
    return Bundle.open(bundle_at(out, source, at, **options), integrity="size")


def calibrate(
    path: Path, thresholds: Sequence[Mapping[str, float] | None], kv: str = "catch_up", cache: str | None = None
) -> Bundle:
    """Add a calibration, of the bundle's type of cache, that allows each exit `thresholds`, and its policy."""
    opened = Bundle.open(path, integrity="size")
    manifest, policy = opened.manifest, opened.files.policy
    point = {"level": 1.0, "thresholds": list(thresholds), "risk": 0.0, "p_value": 0.01, "exit_rate": 0.5}
    fields = {
        "precision": manifest.precision, "kv": kv, "pending_cap": manifest.pending_cap,
        "cache": cache or manifest.cache,
        "method": "learn-then-test", "loss": "disagreement", "risk": 0.02, "error": 0.05, "documents": 9, "tokens": 99,
        "data": "0" * 64, "gates": gates_digest(manifest.exits, policy.exits),
        "path": [{**point, "mean_depth": 2.0}], "chosen": 0,
    }  # fmt: skip
    write_overlay(path, f"overlays/calibration-test-{kv}.json", fields)
    exits = [e.model_copy(update={"confident": t}) for e, t in zip(policy.exits, thresholds, strict=True)]
    write_overlay(path, c.POLICY, {"exits": [e.model_dump() for e in exits], "kv": kv})
    return Bundle.open(path, integrity="size")


def tokens(
    opened: Bundle, prompt: Sequence[int], count: int, how: Sampling | None = None, *,
    stop: Sequence[int] | None = None, **session: Any,
) -> list[int]:  # fmt: skip
    """The ids that a new session generates."""
    return [t.id for t in opened.session(**session).generate(prompt, max_new_tokens=count, sampling=how, stop=stop)]


def caches(stairs: Staircase, lengths: Sequence[int]) -> list[Float]:
    """The live rows of every cache tensor: lengths[k] rows [KV, rows, d] of each of step k's."""
    return [
        cache[stairs.slot, :, :length].copy()
        for step, length in zip(stairs.schedule, lengths, strict=True)
        for name, cache in sorted(stairs.caches.tensors[step.cache].items())
        if not name.endswith("_out")
    ]


def head_logits(opened: Bundle, finished: Float) -> Float:
    """The head's logits [R, V] of finished rows [R, D]."""
    m = opened.manifest
    head = Head(opened.graphs.head, m.model.hidden, m.model.vocab, len(finished), m.minimum_rows)
    logits = head(finished, logits=True).logits
    assert logits is not None
    return logits.copy()


def ort_threads() -> None:
    """The thread pool that opening a bundle makes."""
    use_threads(len(os.sched_getaffinity(0)))


def ort_session(path: Path) -> ort.InferenceSession:
    """A plain session on the process-wide threads: ONNX Runtime allows no others once a bundle was opened."""
    ort_threads()
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    return ort.InferenceSession(path, options)


def hugging_face(source: Path) -> Any:
    """The checkpoint in transformers, float32; every tensor must be used (needs torch)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.set_num_threads(1)  # a second thread would fight with ONNX Runtime's, and a tiny model needs none
    settings = json.loads((source / "config.json").read_text())
    kind = AutoModelForSeq2SeqLM if settings.get("is_encoder_decoder") else AutoModelForCausalLM
    model, notes = kind.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    assert not any(notes[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), notes
    return model.eval()


def hugging_face_tokens(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """What transformers' own greedy generate continues the prompt with."""
    import torch

    ids = torch.tensor([list(prompt)])
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, pad_token_id=0
        )
    return [int(t) for t in out[0, len(prompt) :]]


def hugging_face_states(model: Any, ids: Sequence[int]) -> tuple[list[Float], Float]:
    """transformers' hidden states [R, D] after 0, 1, ... layers, the last one normalised, and its logits [R, V]."""
    import torch

    with torch.inference_mode():
        out = model(torch.tensor([list(ids)]), output_hidden_states=True)
    return [states[0].numpy() for states in out.hidden_states], out.logits[0].numpy()
