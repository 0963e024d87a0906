"""What a policy would have emitted on the full model's own continuation, read from a trace."""

from collections.abc import Sequence

import numpy as np

from eecompile.runtime.bundle import Bundle
from eecompile.runtime.heads import ExitRule
from eecompile.runtime.source import sequence
from eecompile.runtime.trace import DocumentTrace, ExitTrace, Tracer
from eecompile.schema import Thresholds


def agreements(
    bundle: Bundle, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> dict[str, tuple[int, int]]:
    """For the modes full and confident: (tokens that are the continuation's, tokens), teacher-forced.

    The first token of each continuation, which prefill gives, is not counted. `full` is below its count where a pass
    over many rows decides a near-tie otherwise than one over a single row.
    """
    tracer, equal, total = Tracer(bundle), {"full": 0, "confident": 0}, 0
    rules = confident_rules(bundle)
    for prompt, continuation in zip(prompts, continuations, strict=True):
        ids, source = sequence(bundle.manifest, prompt, continuation[:-1])
        trace, first = tracer.trace(ids, source), len(ids) - len(continuation) + 1
        wanted = np.asarray(continuation[1:])
        for mode, open_rules in (("full", [None] * len(rules)), ("confident", rules)):
            chosen = policy_tokens(trace, open_rules, first=first, cap=bundle.manifest.pending_cap)
            equal[mode] += int((np.asarray(chosen) == wanted).sum())
        total += len(wanted)
    return {mode: (found, total) for mode, found in equal.items()}


def policy_tokens(trace: DocumentTrace, rules: Sequence[ExitRule | None], *, first: int, cap: int) -> list[int]:
    """The tokens that follow positions `first` and on when exits fire by `rules`, as Decoder.step decides: a token
    that finds more than `cap` pending, itself included, runs to full depth."""
    tokens, pending = [], 0
    for t in range(first, len(trace.ids)):
        pending += 1
        chosen = trace.final
        for rule in rules if pending <= cap else ():
            if rule is not None and _fires(rule, trace.exits[rule.exit], t):
                chosen = trace.exits[rule.exit]
                break
        if chosen is trace.final:
            pending = 0
        tokens.append(int(chosen.token[t]))
    return tokens


def confident_rules(bundle: Bundle) -> list[ExitRule | None]:
    """The rule of each exit in confident mode; None where the policy keeps it closed."""
    return _open_rules(bundle, [e.confident for e in bundle.files.policy.exits])


def draft_rules(bundle: Bundle) -> list[ExitRule | None]:
    """The rule of each exit for drafts of exact mode; None where the policy keeps it closed."""
    return _open_rules(bundle, [e.draft for e in bundle.files.policy.exits])


def _open_rules(bundle: Bundle, thresholds: Sequence[Thresholds | None]) -> list[ExitRule | None]:
    policy = bundle.files.policy
    return [
        None if chosen is None or e.layer < policy.minimum_depth else ExitRule.of(i, e.layer, chosen)
        for i, (e, chosen) in enumerate(zip(policy.exits, thresholds, strict=True))
    ]


def _fires(rule: ExitRule, said: ExitTrace, t: int) -> bool:
    """Strictly bolder than every bound, as segments/decision.py writes it into the graph."""
    return bool(
        rule.passes_cheap(float(said.confidence[t]))
        and said.max_prob[t] > rule.bounds[0]
        and said.margin[t] > rule.bounds[1]
        and said.entropy[t] < rule.bounds[2]
    )
