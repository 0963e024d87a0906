"""Sessions of one bundle in many threads: each gives what it gives alone."""

import threading
from typing import Any

import numpy as np
import pytest
import tiny

from eecompile.runtime import Sampling

THREADS, REQUESTS, NEW = 8, 6, 30


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_many_sessions_do_not_disturb_each_other(shelf: Any, precision: str) -> None:
    opened = shelf.bundle(at=[1, 2, 3], precision=precision, gain=0.35)
    rng = np.random.default_rng(1)
    work = []
    for n in range(THREADS * REQUESTS):
        prompt = rng.integers(0, tiny.VOCAB, int(rng.integers(1, 150))).tolist()
        mode = ("full", "exact")[n % 2]
        thresholds = {1: {"max_prob": 0.2}, 2: None, 3: {"max_prob": 0.0}} if mode == "exact" else None
        work.append((prompt, mode, thresholds, Sampling(temperature=0.7 * (n % 3), seed=n)))
    alone = [tiny.tokens(opened, p, NEW, how, mode=m, thresholds=t) for p, m, t, how in work]
    found: dict[int, list[int]] = {}
    start = threading.Barrier(THREADS)

    def serve(first: int) -> None:
        start.wait()
        for n in range(first, len(work), THREADS):
            prompt, mode, thresholds, how = work[n]
            found[n] = tiny.tokens(opened, prompt, NEW, how, mode=mode, thresholds=thresholds)

    threads = [threading.Thread(target=serve, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found.get(n) for n in range(len(work))] == alone


def test_a_session_may_move_between_threads(shelf: Any) -> None:
    opened = shelf.bundle(at=[2], gain=0.35)
    session = opened.session()
    expected = tiny.tokens(opened, [5, 6], 12)
    for _ in range(3):
        generation, ids = session.generate([5, 6], max_new_tokens=12), []
        for _ in range(12):
            thread = threading.Thread(target=lambda g=generation, i=ids: i.append(next(g).id))
            thread.start()
            thread.join()
        assert ids == expected
