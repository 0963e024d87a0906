"""Tiny random encoders with classifiers, as tiny.py's decoders: every tensor alive, nothing here needs torch but what
says so."""

import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tiny
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from eecompile import contract as c
from eecompile.bundle.digest import gates_digest
from eecompile.bundle.write import write_overlay
from eecompile.runtime import Bundle
from eecompile.runtime.texts import EncodedText
from eecompile.runtime.trace_texts import TextTracer
from eecompile.student.exits import EarlyExit, ExitSpec, save_exits
from eecompile.student.families import encoder_from_config

VOCAB = 96
TEXT = "the a cat dog sat ran on in mat town and then it was , . ##s ##ed"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *TEXT.split()]
TASKS = {
    "sequence": {"id2label": {"0": "bad", "1": "fair", "2": "good"}},
    "tokens": {"id2label": {"0": "O", "1": "B", "2": "I", "3": "E"}},
    "regression": {"id2label": {"0": "score"}, "problem_type": "regression"},
}
CLASSES = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "distilbert": "DistilBert"}


def config(family: str = "bert", task: str = "sequence", **changes: Any) -> tiny.Config:
    """config.json of a four-layer encoder; None removes a key."""
    kind = "TokenClassification" if task == "tokens" else "SequenceClassification"
    sizes: tiny.Config = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "vocab_size": VOCAB, "max_position_embeddings": 80, "type_vocab_size": 2, "hidden_act": "gelu",
        "layer_norm_eps": 1e-5, "pad_token_id": 0,
    }  # fmt: skip
    if family == "distilbert":
        sizes = {
            "dim": 32, "hidden_dim": 64, "n_layers": 4, "n_heads": 4, "vocab_size": VOCAB,
            "max_position_embeddings": 80, "activation": "gelu", "pad_token_id": 0,
        }  # fmt: skip
    if family in ("roberta", "xlm-roberta"):
        sizes |= {"pad_token_id": 1, "type_vocab_size": 1}
    named = {"model_type": family, "architectures": [f"{CLASSES[family]}For{kind}"], **TASKS[task]}
    return {k: v for k, v in {**sizes, **named, **changes}.items() if v is not None}


def variants() -> dict[str, tiny.Config]:
    """One config for each family and task, and for each thing that a config can say besides."""
    found = {f"{family}-{task}": config(family, task) for family in CLASSES for task in TASKS}
    return found | {
        "bert-relu": config(hidden_act="relu"),
        "bert-silu": config(hidden_act="silu"),
        "bert-gelu-tanh": config(task="tokens", hidden_act="gelu_new"),
        "bert-one-type": config(type_vocab_size=1),
        "bert-plain-labels": config(id2label=None),
        "bert-implied-regression": config(task="regression", problem_type=None),
        "distilbert-relu": config("distilbert", "tokens", activation="relu"),
    }


def weights(settings: Mapping[str, Any], seed: int = 0, gain: float = 1.0) -> dict[str, tiny.Float]:
    """Random tensors by checkpoint name; `gain` scales what the layers add, so that they change less or more."""
    rng, tensors = np.random.default_rng(seed), {}
    for name, shape in encoder_from_config(settings).shapes().items():
        values = rng.standard_normal(shape)
        norm = "LayerNorm" in name or "layer_norm" in name
        if norm and name.endswith(".weight"):
            values = np.exp(0.4 * values)
        elif name.endswith(".bias"):
            values = 0.5 * values
        elif "embeddings" not in name:
            out = name.endswith(("output.dense.weight", "out_lin.weight", "lin2.weight"))
            values *= (gain if out else 1.5) / np.sqrt(shape[-1])
        tensors[name] = values.astype(np.float32)
    return tensors


def checkpoint(
    path: Path, settings: tiny.Config | None = None, *, seed: int = 0, gain: float = 1.0, **changes: tiny.Float
) -> Path:  # fmt: skip
    """Write a checkpoint directory and return it; `changes` replace tensors."""
    settings = config() if settings is None else settings
    return tiny.checkpoint(path, settings, {**weights(settings, seed, gain), **changes})


def add_tokenizer(path: Path) -> Path:
    """Give a checkpoint a WordPiece tokenizer that adds [CLS] and [SEP] and tells the texts of a pair apart."""
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in WORDS[:4]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def add_own_classifiers(path: Path, layers: Sequence[int], adapter: Any = "classifier", seed: int = 5) -> Path:
    """Give a checkpoint exits with random classifiers (or affine adapters) of their own."""
    spec = encoder_from_config(json.loads((path / "config.json").read_text()))
    rng, tensors, d = np.random.default_rng(seed), {}, spec.hidden
    gate: Any = "delta" if spec.task == "regression" else "max_prob"
    for layer in layers:
        parts = {"adapter": (d, d)}
        if adapter == "classifier":
            parts = {"classifier": (d, len(spec.labels))} | ({"pooler": (d, d)} if spec.pooler else {})
        for part, shape in parts.items():
            tensors[f"exit.{layer}.{part}.weight"] = rng.standard_normal(shape).astype(np.float32) / np.float32(4)
            tensors[f"exit.{layer}.{part}.bias"] = rng.standard_normal(shape[1]).astype(np.float32)
    exits = [ExitSpec(layer=layer, adapter=adapter, gates=[gate]) for layer in layers]
    save_exits(path, EarlyExit(exits=exits), tensors)
    return path


def encoded(ids: Sequence[int], types: Sequence[int] | None = None, special: Sequence[int] = ()) -> EncodedText:
    """Token ids as a text; `special` are the places of special tokens."""
    kinds = [0] * len(ids) if types is None else list(types)
    return EncodedText(list(ids), kinds, [i in special for i in range(len(ids))])


def random_texts(count: int, seed: int = 0, longest: int = 40, types: int = 2) -> list[EncodedText]:
    """Texts of random ids and lengths, a special token at both ends; no padding ids."""
    rng, texts = np.random.default_rng(seed), []
    for _ in range(count):
        n = int(rng.integers(1, longest + 1))
        kinds = np.sort(rng.integers(0, types, n)) if types else np.zeros(n, np.int64)
        texts.append(encoded(rng.integers(2, VOCAB, n).tolist(), kinds.tolist(), special={0, n - 1} if n > 2 else ()))
    return texts


def open_bundle(out: Path, source: Path, at: Sequence[int] = (), **options: Any) -> Bundle:
    """Build and open."""
    from eecompile.pipeline import BuildOptions, build
    from eecompile.student.encoder_student import open_encoder
    from eecompile.target import load_target

    build(open_encoder(source, at), load_target("cpu"), out, BuildOptions(**options))
    return Bundle.open(out, integrity="size")


def calibrated(opened: Bundle, out: Path, kv: str, *points: list[Any]) -> Bundle:
    """A copy of the bundle whose calibration tested `points`, thresholds of each exit, and chose the last."""
    shutil.copytree(opened.files.path, out)
    manifest, policy = opened.manifest, opened.files.policy
    rest = {"level": 1.0, "risk": 0.0, "p_value": 0.01, "exit_rate": 0.5, "mean_depth": 2.0}
    write_overlay(out, f"overlays/calibration-{kv}.json", {
        "precision": manifest.precision, "kv": kv, "pending_cap": 1, "method": "learn-then-test", "loss": "made up",
        "risk": 0.02, "error": 0.05, "documents": 9, "tokens": 99, "data": "0" * 64,
        "gates": gates_digest(manifest.exits, policy.exits),
        "path": [{**rest, "thresholds": p} for p in points], "chosen": len(points) - 1,
    })  # fmt: skip
    exits = [e.model_copy(update={"confident": t}) for e, t in zip(policy.exits, points[-1], strict=True)]
    write_overlay(out, c.POLICY, {"exits": [e.model_dump() for e in exits]})
    return Bundle.open(out, integrity="size")


def passed_by(opened: Bundle, share: float) -> list[dict[str, float]]:
    """Thresholds that such a share of what every exit says of random texts passes."""
    assert opened.manifest.encoder is not None
    said = TextTracer(opened).trace(random_texts(20, seed=9, types=opened.manifest.encoder.types)).exits
    if opened.manifest.task == "regression":
        moved = [np.abs(b.logits - a.logits) for a, b in itertools.pairwise(said)]
        return [{"delta": 1.0}, *({"delta": float(np.quantile(d, share))} for d in moved)]
    return [{"max_prob": float(np.quantile(e.max_prob, 1 - share))} for e in said if e.max_prob is not None]


def hugging_face(source: Path) -> Any:
    """The checkpoint in transformers, float32; every tensor must be used (needs torch)."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    torch.set_num_threads(1)
    architecture = json.loads((source / "config.json").read_text())["architectures"][0]
    kind = AutoModelForTokenClassification if "Token" in architecture else AutoModelForSequenceClassification
    model, notes = kind.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    assert not any(notes[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), notes
    return model.eval()


def hugging_face_rows(model: Any, texts: Sequence[EncodedText]) -> tuple[list[tiny.Float], tiny.Float]:
    """transformers' hidden states after 0, 1, ... layers [N, D] and logits, of a padded batch without its padding."""
    import torch

    longest, pad = max(len(t.ids) for t in texts), model.config.pad_token_id
    padded = {
        "input_ids": [[*t.ids, *[pad] * (longest - len(t.ids))] for t in texts],
        "attention_mask": [[1] * len(t.ids) + [0] * (longest - len(t.ids)) for t in texts],
    }
    if getattr(model.config, "type_vocab_size", 0):
        padded["token_type_ids"] = [[*t.types, *[0] * (longest - len(t.ids))] for t in texts]
    with torch.inference_mode():
        out = model(**{k: torch.tensor(v) for k, v in padded.items()}, output_hidden_states=True)

    def rows(values: Any) -> tiny.Float:
        return np.concatenate([values[i, : len(t.ids)].numpy() for i, t in enumerate(texts)])

    per_token = out.logits.ndim == 3
    return [rows(states) for states in out.hidden_states], rows(out.logits) if per_token else out.logits.numpy()
