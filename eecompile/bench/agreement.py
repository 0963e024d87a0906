"""What a policy would have emitted on the full model's own continuation, read from a trace."""

from collections.abc import Sequence

import numpy as np

from eecompile import contract as c
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.forced import run_forced
from eecompile.runtime.gates import GateState
from eecompile.runtime.rules import ExitRule
from eecompile.runtime.source import sequence
from eecompile.runtime.trace import DocumentTrace, ExitTrace, Tracer
from eecompile.schema import Thresholds


def agreements(
    bundle: Bundle, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> dict[str, tuple[int, int]]:
    """For the modes full and confident: (tokens that are the continuation's, tokens), teacher-forced.

    The first token of each continuation, which prefill gives, is not counted. `full` is below its count where a pass
    over many rows decides a near-tie otherwise than one over a single row. With a rule by which what a
    token sees depends on who left before it, the runtime itself is run over the continuation.
    """
    tracer, equal, total = Tracer(bundle), {"full": 0, "confident": 0}, 0
    rules = confident_rules(bundle)
    for prompt, continuation in zip(prompts, continuations, strict=True):
        ids, source = sequence(bundle.manifest, prompt, continuation[:-1])
        trace, first = tracer.trace(ids, source), len(ids) - len(continuation) + 1
        wanted = np.asarray(continuation[1:])
        for mode, open_rules in (("full", [None] * len(rules)), ("confident", rules)):
            if mode == "confident" and bundle.files.policy.kv in c.APPROXIMATE and any(rules):
                [found] = run_forced(bundle, bundle.settings(mode=mode), [ids], first=first)
                chosen = found.tokens
            else:
                chosen = policy_tokens(trace, open_rules, first=first, cap=bundle.manifest.pending_cap)
            equal[mode] += int((np.asarray(chosen) == wanted).sum())
        total += len(wanted)
    return {mode: (found, total) for mode, found in equal.items()}


def policy_tokens(trace: DocumentTrace, rules: Sequence[ExitRule | None], *, first: int, cap: int) -> list[int]:
    """The tokens that follow positions `first` and on when exits fire by `rules`, as Decoder.step decides in confident
    mode: a token that finds more than `cap` pending, itself included, runs to full depth."""
    tokens, pending, state = [], 0, GateState()
    state.start(first)
    for t in range(first, len(trace.ids)):
        pending += 1
        state.begin(t + 1)
        chosen = trace.final
        for rule in rules if pending <= cap else ():
            if rule is not None and rule.opens and _fires(rule, trace.exits[rule.exit], t, state):
                chosen = trace.exits[rule.exit]
                break
        if chosen is trace.final:
            pending = 0
            state.learn(t + 1, int(chosen.token[t]))
        tokens.append(int(chosen.token[t]))
    return tokens


def confident_rules(bundle: Bundle) -> list[ExitRule | None]:
    """The rule of each exit in confident mode; None where the policy keeps it closed."""
    return _open_rules(bundle, [e.confident for e in bundle.files.policy.exits])


def draft_rules(bundle: Bundle) -> list[ExitRule | None]:
    """The rule of each exit for drafts of exact mode; None where the policy keeps it closed."""
    return _open_rules(bundle, [e.draft for e in bundle.files.policy.exits])


def _open_rules(bundle: Bundle, thresholds: Sequence[Thresholds | None]) -> list[ExitRule | None]:
    policy, infos = bundle.files.policy, bundle.manifest.exits
    return [
        None if chosen is None or e.layer < policy.minimum_depth else ExitRule.of(i, e.layer, chosen, infos[i].schedule)
        for i, (e, chosen) in enumerate(zip(policy.exits, thresholds, strict=True))
    ]


def _fires(rule: ExitRule, said: ExitTrace, t: int, state: GateState) -> bool:
    """Strictly bolder than every bound, as runtime/gates.py and segments/decision.py have it."""
    if not rule.passes_cheap({k: float(said.value(k)[t]) for k in rule.cheap}):
        return False
    bounds = state.bounds(rule)
    state.note(rule, float(said.max_prob[t]), float(said.margin[t]), int(said.token[t]))
    patient = rule.patience is None or said.value("patience")[t] > rule.patience
    flag = said.max_prob[t] > bounds[0] and said.margin[t] > bounds[1] and said.entropy[t] < bounds[2]
    return bool(patient and said.confirmed[t] and flag)
