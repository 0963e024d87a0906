"""Every kind of model in exact mode: a row's bits do not depend on its pass, so that drafts change no token."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import tiny

from eecompile.runtime import Sampling
from eecompile.verify.rows import Walker, boundaries

EXITS = [1, 3]
IDS = np.random.default_rng(4).integers(0, tiny.VOCAB, 150).tolist()
WIDTHS = [[127, 1, 1, 21], [7, 1, 1, 50, 2, 1, 3, 4, 9, 1, 8, 1, 62]]


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("name", tiny.other_variants())
def test_exact_is_full(shelf: Any, name: str, precision: str) -> None:
    opened = shelf.bundle(tiny.variants()[name], EXITS, precision=precision)
    walker, seen = Walker(opened), Counter[str]()
    whole = walker.walk(IDS, [128, 22])
    for widths in WIDTHS:
        for (boundary, a), (_, b) in zip(boundaries(whole), boundaries(walker.walk(IDS, widths)), strict=True):
            assert np.array_equal(a, b), (boundary, widths)
    thresholds = {1: {"max_prob": 0.05}, 3: {"max_prob": 0.02}}
    for how in (Sampling(), Sampling(temperature=0.8, seed=3)):
        full = tiny.tokens(opened, IDS[:20], 24, how)
        generation = opened.session(mode="exact", thresholds=thresholds).generate(
            IDS[:20], max_new_tokens=24, sampling=how
        )
        assert [token.id for token in generation] == full
        seen.update(drafted=generation.stats.drafted)
    assert seen["drafted"] > 0
