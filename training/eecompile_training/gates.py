"""Gates learn, on states without gradient, what their exit does: learned ones and predictors whether it agrees with the
last layer, a router how deep a token has to go. As `eecompile exits` labels them (eecompile/calibrate/fit_gates.py)."""

import torch
from torch import Tensor
from torch.nn import functional

from eecompile import contract as c
from eecompile.student.exits import ExitSpec
from eecompile_training.backbone import Backbone, States
from eecompile_training.data import IGNORED, Batch
from eecompile_training.exits import TorchExits, predictor_features
from eecompile_training.losses import gate_loss


def gates_loss(backbone: Backbone, exits: TorchExits, states: States, batch: Batch, count: int, chunk: int) -> Tensor:
    """The sum of every gate's loss over the tokens that count, over `count`."""
    counted = batch.targets != IGNORED
    with torch.no_grad():
        final = best_tokens(backbone, exits, None, states.finished[counted], chunk)
        rows = [exit_rows(backbone, exits, e, states, counted) for e in exits.schema.exits]
        agrees = [
            best_tokens(backbone, exits, e, ready, chunk) == final
            for e, (_, _, ready) in zip(exits.schema.exits, rows, strict=True)
        ]
    total = states.finished.new_zeros(())
    for exit_, (_, normed, _), right in zip(exits.schema.exits, rows, agrees, strict=True):
        if exit_.gate_units:
            total = total + gate_loss(exits.learned(exit_, normed), right, count)
    for exit_, (hidden, _, _) in zip(exits.schema.exits, rows, strict=True):
        if exit_.router is not None:
            depth = torch.stack([*agrees, torch.ones_like(agrees[0])]).float().argmax(0)
            total = total + functional.cross_entropy(exits.router(exit_, hidden), depth, reduction="sum") / count
    return total + _predictors(backbone, exits, [ready for _, _, ready in rows], agrees, final, count)


def exit_rows(
    backbone: Backbone, exits: TorchExits, exit_: ExitSpec, states: States, counted: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens that count [N, D] at an exit: as they are, after the final norm, and ready for the head."""
    hidden = states.hidden[exit_.depth]
    normed = backbone.norm(hidden)
    ready = exits.ready(exit_, hidden, normed)
    return hidden[counted].detach(), normed[counted].detach(), ready[counted].detach()


def exit_logits(backbone: Backbone, exits: TorchExits, head: str, ready: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits [N, W] of the head of that name, and the tokens of the W (None: all)."""
    if head == c.FULL_HEAD:
        return backbone.logits(ready), None
    shape = next(h for h in exits.schema.heads if h.name == head)
    tokens = torch.tensor(shape.tokens, device=ready.device) if shape.tokens else None
    return exits.small_logits(shape, ready, backbone.head.weight, backbone.head.bias), tokens


def best_tokens(backbone: Backbone, exits: TorchExits, exit_: ExitSpec | None, ready: Tensor, chunk: int) -> Tensor:
    """The arg-max [N] of an exit's head, or of the last layer's, for rows [N, D], `chunk` at a time."""
    found = []
    for start in range(0, len(ready), chunk):
        head = c.FULL_HEAD if exit_ is None else exit_.head
        logits, tokens = exit_logits(backbone, exits, head, ready[start : start + chunk])
        best = logits.argmax(-1)
        found.append(best if tokens is None else tokens[best])
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.long, device=ready.device)


def _predictors(
    backbone: Backbone, exits: TorchExits, ready: list[Tensor], agrees: list[Tensor], final: Tensor, count: int
) -> Tensor:
    """SpecEE: the exit is right and its token one of the candidates, which the first exit with a predictor chose."""
    total, candidates, local = final.new_zeros((), dtype=torch.float32), None, None
    for exit_, rows, right in zip(exits.schema.exits, ready, agrees, strict=True):
        if exit_.predictor is None:
            continue
        with torch.no_grad():
            logits, tokens = exit_logits(backbone, exits, exit_.predictor.head, rows)
            features, candidates, local = predictor_features(logits, candidates, local)
            named = candidates if tokens is None else tokens[candidates]
            right = right & (named == final[:, None]).any(-1)
        total = total + gate_loss(exits.predictor(exit_, features), right, count)
    return total
