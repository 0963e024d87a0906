"""Made-up tables of what exits said."""

import numpy as np

from eecompile.calibrate.points import Price
from eecompile.calibrate.tables import ExitTable, TokenTable
from eecompile.schema import Criterion

PRICE = Price(layers=12, head=3.0, vocab=100)
FINITE: tuple[Criterion, ...] = ("learned", "max_prob", "margin", "entropy")


def exit_table(layer: int, gates: tuple[Criterion, ...], tokens: int, seed: int) -> ExitTable:
    """An exit whose gates know something of whether it agrees; values repeat, as rounded ones do."""
    rng = np.random.default_rng([seed, layer])
    sure = rng.random(tokens)
    agrees = rng.random(tokens) < sure
    values = {}
    for gate in gates:
        if gate in FINITE:
            noisy = np.clip(np.round(sure + 0.2 * rng.standard_normal(tokens), 2), 0, 1)
            values[gate] = ((1 - noisy) * np.log(100) if gate == "entropy" else noisy).astype(np.float32)
    return ExitTable(layer, gates, values, rng.random(tokens) < 0.95, agrees)


def token_table(
    layers: dict[int, tuple[Criterion, ...]], documents: int = 40, length: int = 30, seed: int = 0
) -> TokenTable:
    """Exits after these layers with these gates, over documents of `length` tokens."""
    tokens = documents * length
    exits = [exit_table(layer, gates, tokens, seed) for layer, gates in layers.items()]
    return TokenTable(np.repeat(np.arange(documents), length), documents, exits, PRICE.layers)
