"""`bench --kv`: the rules for skipped layers side by side, for every number of tokens that may wait.

Teacher-forced on the full model's own continuation: n tokens leave at the first exit, the next runs to full depth, and
so on. What that one says is held against the full model's: with catch_up it is the same; with propagate it looks at
keys and values of which n in a cycle are not the full model's, and with selected those n are not there.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter

import numpy as np

from eecompile import contract as c
from eecompile.bench.results import KVPoint, KVResult
from eecompile.errors import UsageError
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.heads import Float, Head
from eecompile.runtime.staircase import Staircase

Ids = list[int]
Progress = Callable[[str], None]


@dataclass
class _Sums:
    """Over the tokens from full depth: how many, how many of them the full model's, and their surprise in nats."""

    seconds: float = 0.0
    tokens: int = 0
    deep: int = 0
    equal: int = 0
    nats: float = 0.0


def bench_rules(
    bundle: Bundle, prompts: Sequence[Ids], *, max_new_tokens: int, rounds: int = 1,
    progress: Progress = lambda stage: None,
) -> KVResult:  # fmt: skip
    """Every rule of the bundle, for 0 to its cap of pending rows; the rules take turns at each prompt.

    Raises UsageError where the bundle has no exit to leave at or only one rule.
    """
    manifest = bundle.manifest
    if not manifest.exits or len(manifest.kv_rules) < 2:
        mend = f"build it with exits and with --kv {','.join(c.KV_RULES)}"
        raise UsageError("there are no K/V rules to compare", where=str(bundle.files.path), mend=mend)
    session = bundle.session(mode="full")
    texts = []
    for prompt in prompts:
        generation = session.generate(prompt, max_new_tokens=max_new_tokens, stop=())
        texts.append((prompt, [token.id for token in generation]))
    walker = _Walker(bundle)
    found: dict[tuple[str, int], _Sums] = {}
    for number in range(rounds):
        for pending in range(manifest.pending_cap + 1):
            progress(f"K/V rules, round {number + 1} of {rounds}, {pending} pending")
            for prompt, continuation in texts:
                for rule in manifest.kv_rules:
                    walker.walk(prompt, continuation, rule, pending, found.setdefault((rule, pending), _Sums()))
    points = [_point(rule, pending, sums) for (rule, pending), sums in sorted(found.items())]
    return KVResult(layer=manifest.exits[0].layer, points=points)


class _Walker:
    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        model = manifest.model
        self._stairs = Staircase(manifest, bundle.graphs)
        self._head = Head(bundle.graphs.head, model.hidden, model.vocab, 1, manifest.minimum_rows)
        self._until = next(k for k, step in enumerate(manifest.schedule) if step.exit == 0) + 1

    def walk(self, prompt: Ids, continuation: Ids, rule: str, pending: int, sums: _Sums) -> None:
        """Continue `prompt` by `continuation`, `pending` of any `pending` + 1 tokens leaving early."""
        stairs, said = self._stairs, list[tuple[Float, int]]()
        stairs.reset()
        stairs.prefill(prompt)
        began = perf_counter()
        for i, (token, wanted) in enumerate(pairwise(continuation)):
            stairs.append([token])
            if i % (pending + 1) < pending:
                for k in range(self._until):
                    stairs.run_step(k)
                if rule == "propagate":
                    stairs.leave_at(self._until)
                if rule == "selected":
                    stairs.stop_at(self._until)
                continue
            logits = self._head(stairs.run_full()[-1:], logits=True).logits
            assert logits is not None
            said.append((logits[0].copy(), wanted))
        sums.seconds += perf_counter() - began
        sums.tokens += len(continuation) - 1
        for row, wanted in said:
            shifted = row.astype(np.float64) - row.max()
            sums.deep += 1
            sums.equal += int(row.argmax()) == wanted
            sums.nats += float(np.log(np.exp(shifted).sum()) - shifted[wanted])


def _point(rule: str, pending: int, sums: _Sums) -> KVPoint:
    deep = max(1, sums.deep)
    return KVPoint(
        rule=rule,
        pending=pending,
        tokens_per_second=sums.tokens / sums.seconds if sums.seconds else 0.0,
        agreement=sums.equal / deep,
        perplexity=math.exp(min(700.0, sums.nats / deep)),
        tokens=sums.deep,
    )
