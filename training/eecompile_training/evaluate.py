"""What exits are worth while training: agreement with the last layer and cross-entropy on held-out rows."""

import torch

from eecompile_training.data import IGNORED, Rows
from eecompile_training.distilled import LAST, Distilled, Point
from eecompile_training.gates import exit_logits


@torch.no_grad()
def evaluate_exits(module: Distilled, rows: Rows, most: int, size: int) -> dict[str, float]:
    """ "<exit>.agreement": the share of predictions whose arg-max is the last layer's; "<exit>.ce": nats a token, for
    heads of all tokens; over the first `most` rows, `size` at a time. Nothing where no row is held out."""
    sums: dict[str, float] = {}
    count, was = 0, module.training
    module.eval()
    device = next(module.parameters()).device
    points = [Point(e.depth, e) for e in module.exits.schema.exits]
    for start in range(0, min(most, len(rows)), size):
        batch = rows.batch(range(start, min(start + size, most, len(rows)))).to(device)
        states = module.backbone(batch.ids, [p.depth for p in points])
        counted = batch.targets != IGNORED
        targets, last = batch.targets[counted], states.finished[counted]
        ready = {p: module.ready(p, states)[counted] for p in points}
        count += len(targets)
        for first in range(0, len(targets), module.chunk):
            part = slice(first, first + module.chunk)
            final = module.backbone.logits(last[part])
            _add(sums, f"{LAST}.ce", _entropy(final, targets[part]))
            for p in points:
                assert p.exit_ is not None
                logits, tokens = exit_logits(module.backbone, module.exits, p.exit_.head, ready[p][part])
                best = logits.argmax(-1) if tokens is None else tokens[logits.argmax(-1)]
                _add(sums, f"{p.name}.agreement", float((best == final.argmax(-1)).sum()))
                if tokens is None:
                    _add(sums, f"{p.name}.ce", _entropy(logits, targets[part]))
    module.train(was)
    return {name: value / count for name, value in sums.items()}


def _entropy(logits: torch.Tensor, targets: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum"))


def _add(sums: dict[str, float], name: str, value: float) -> None:
    sums[name] = sums.get(name, 0.0) + value
