"""Which of a backbone's parameters are trained."""

from torch import nn

from eecompile_training.backbone import Backbone, EncoderBackbone
from eecompile_training.distill_config import Tune


def tuned(backbone: Backbone, tune: Tune) -> list[nn.Parameter]:
    """The backbone's parameters that `tune` trains. With `layers`, of what is outside the layers only embeddings."""
    named = dict(backbone.model.named_parameters())
    if not tune.backbone:
        return []
    if tune.lora is not None:
        return [p for name, p in named.items() if "lora_" in name]
    return [parameter for name, parameter in named.items() if _is_tuned(backbone, tune, name)]


def tuned_encoder(backbone: EncoderBackbone, tune: Tune) -> list[nn.Parameter]:
    """The same of an encoder; its classifier counts as outside the layers."""
    if not tune.backbone:
        return []
    names = backbone.spec.names
    tables = {f"{name}.weight" for name in (names.words, names.positions, names.types)}
    parent, found = names.q.split("{i}")[0], []
    for name, parameter in backbone.model.named_parameters():
        if name in tables:
            chosen = tune.embeddings
        elif name.startswith(parent):
            number = int(name.removeprefix(parent).split(".")[0])
            chosen = tune.layers is None or number < tune.layers
        else:
            chosen = tune.layers is None
        found += [parameter] if chosen else []
    return found


def _is_tuned(backbone: Backbone, tune: Tune, name: str) -> bool:
    names = backbone.spec.names
    if name in (names.embed, names.positions, names.head, names.head_bias):
        return tune.embeddings
    parent = names.q.split("{i}")[0]
    if not name.startswith(parent):
        return tune.layers is None
    return tune.layers is None or int(name.removeprefix(parent).split(".")[0]) < tune.layers
