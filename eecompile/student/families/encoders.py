"""What the encoder families share: the task, the labels and the sizes that a config gives."""

from collections.abc import Mapping
from typing import Any

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.student.encoder import EncoderActivation, Task

_WHERE = "config.json"
_NO_HEAD = (
    "eecompile compiles encoders that classify: give a checkpoint of transformers' "
    "AutoModelForSequenceClassification or AutoModelForTokenClassification, fine-tuned on the task"
)
_ACTIVATIONS: Mapping[str, EncoderActivation] = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu",
    "swish": "silu",
}  # fmt: skip


def task_of(config: Mapping[str, Any]) -> tuple[Task, tuple[str, ...]]:
    """The task that the architecture's name and `problem_type` say, and the labels in order.

    Raises UsageError where the checkpoint has no classifier, or one that is not supported.
    """
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else "no architecture"
    labels, kind = _labels(config), config.get("problem_type")
    if architecture.endswith("ForTokenClassification"):
        _check_labels(labels)
        return "token-classification", labels
    if not architecture.endswith("ForSequenceClassification"):
        raise UsageError(f"{architecture} has no classifier", where=_WHERE, mend=_NO_HEAD)
    if kind == "multi_label_classification":
        mend = "only one label a text (or token) is supported: train with single_label_classification"
        raise UsageError("the classifier gives several labels at once", where=_WHERE, mend=mend)
    if kind == "regression" or (kind is None and len(labels) == 1):
        if len(labels) != 1:
            raise UsageError(f"a regression with {len(labels)} values", where=_WHERE, mend="one value is supported")
        return "regression", labels
    _check_labels(labels)
    return "sequence-classification", labels


def activation_of(config: Mapping[str, Any], key: str) -> EncoderActivation:
    """The MLP's activation."""
    name = str(config.get(key, "gelu"))
    if name not in _ACTIVATIONS:
        mend = f"supported: {', '.join(sorted(_ACTIVATIONS))}"
        raise UsageError(f"activation {name!r} is not supported", where=_WHERE, mend=mend)
    return _ACTIVATIONS[name]


def size_of(config: Mapping[str, Any], key: str, most: int, default: int, *, least: int = 1) -> int:
    """A whole number of the config, or `default` where it is not there."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UsageError(f"{key} is {value!r}, not a number from {least} to {most}", where=_WHERE)
    return value


def heads_of(config: Mapping[str, Any], key: str, hidden: int) -> int:
    """The number of attention heads, which has to divide the hidden size."""
    heads = size_of(config, key, c.MAX_HEADS, 12)
    if hidden % heads:
        raise UsageError(f"{heads} heads do not divide a hidden size of {hidden}", where=_WHERE)
    return heads


def epsilon_of(config: Mapping[str, Any], default: float) -> float:
    """The epsilon of every LayerNorm."""
    value = config.get("layer_norm_eps", default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise UsageError(f"layer_norm_eps is {value!r}, not a small number", where=_WHERE)
    return float(value)


def refuse_decoding(config: Mapping[str, Any]) -> None:
    """Raise UsageError for a config that turns the encoder into a decoder or changes what positions are."""
    for key in ("is_decoder", "add_cross_attention"):
        if config.get(key):
            raise UsageError(f"{key} is set, so that this is no encoder", where=_WHERE)
    kind = config.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise UsageError(f"position embeddings are {kind!r}", where=_WHERE, mend="only absolute ones are supported")


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    names = config.get("id2label")
    if names is None:
        return tuple(f"LABEL_{i}" for i in range(size_of(config, "num_labels", c.MAX_LABELS, 2)))
    if not isinstance(names, dict) or not 1 <= len(names) <= c.MAX_LABELS:
        raise UsageError("id2label is not a table of labels", where=_WHERE)
    try:
        ordered = {int(key): str(value) for key, value in names.items()}
    except (TypeError, ValueError) as e:
        raise UsageError("id2label's keys are not numbers", where=_WHERE) from e
    if sorted(ordered) != list(range(len(ordered))) or len(ordered) != len(names):
        raise UsageError(f"id2label does not number its labels from 0 to {len(names) - 1}", where=_WHERE)
    if any(not 1 <= len(name) <= 200 for name in ordered.values()):
        raise UsageError("a label is empty or longer than 200 characters", where=_WHERE)
    return tuple(ordered[i] for i in range(len(ordered)))


def _check_labels(labels: tuple[str, ...]) -> None:
    if len(labels) < 2:
        raise UsageError("a classification with one label decides nothing", where=_WHERE, mend="give id2label")
