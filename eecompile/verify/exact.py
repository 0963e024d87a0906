"""Exact mode against full mode, token for token.

A wrong draft may cost time, never a token. So drafts are forced: at the boldest thresholds every token is drafted by
the first exit, at the median about half of them and by changing exits, and most are wrong.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from eecompile.bundle.ranges import criterion_range
from eecompile.errors import NumericError, UsageError
from eecompile.runtime import Bundle, Sampling, Session
from eecompile.runtime.sampling import gumbel_noise
from eecompile.runtime.source import sequence
from eecompile.schema import Criterion, Thresholds
from eecompile.verify.criteria import Values
from eecompile.verify.report import Check, at_least, at_most
from eecompile.verify.rows import Walker

LEAST_TOKENS = 2  # of a prompt: its own pass gives the first, at full depth
LEAST_WALKS = 10  # tokens; of fewer, that exits at the median drafted none says nothing
SAMPLED = Sampling(temperature=0.8, seed=20)
Forced = Mapping[int, Thresholds | None]
Run = tuple[list[int], str]  # token ids, why they ended


@dataclass(frozen=True)
class Setting:
    """One way of running exact mode. thresholds None: the policy's own. drafts_of: of so many tokens after the first
    one at least has to be a draft, or the comparison showed nothing; None: none has to."""

    name: str
    sampling: Sampling
    thresholds: Forced | None
    cap: int
    drafts_of: int | None = None


@dataclass
class Tally:
    """Counts over the prompts of one setting; `faults` are mismatches in words. walks: tokens that exits were asked of,
    which of each prompt's are all but the first."""

    walks: int = 0
    compared: int = 0
    mismatches: int = 0
    ties: int = 0
    drafted: int = 0
    rejected: int = 0
    faults: list[str] = field(default_factory=list)


def settings(bundle: Bundle, values: Sequence[Values]) -> list[Setting]:
    """Policy drafts and forced ones. values: what each exit said of some tokens, by criterion."""
    cap, greedy = bundle.manifest.pending_cap, Sampling()
    bold = _forced(bundle, [None] * len(values))
    middle = _forced(bundle, values)
    return [
        Setting("exact greedy, policy drafts", greedy, None, cap),
        Setting("exact greedy, forced drafts, cap 1", greedy, bold, 1, 1),
        Setting(f"exact greedy, forced drafts, cap {cap}", greedy, bold, cap, 1),
        Setting(f"exact greedy, mixed drafts, cap {cap}", greedy, middle, cap, LEAST_WALKS),
        Setting(f"exact sampled, mixed drafts, cap {cap}", SAMPLED, middle, cap, LEAST_WALKS),
    ]


def check_tokens(tokens: int) -> None:
    """Raise UsageError where so few tokens of a prompt have no draft among them."""
    if tokens < LEAST_TOKENS:
        what = f"{tokens} tokens show nothing of exact mode: no draft can be the first, which the prompt's pass gives"
        raise UsageError(what, where="--tokens", mend=f"generate {LEAST_TOKENS} or more for each prompt")


def check_exact(bundle: Bundle, walker: Walker, prompts: Sequence[list[int]], tokens: int, values: Sequence[Values],
                noise: float, progress: Callable[[str], None]) -> list[Check]:  # fmt: skip
    """One check a setting: the tokens of mode exact are those of mode full.

    noise: rounding noise of a logit. A token that differs is accepted only where the full model's scores of the two are
    within it. Raises UsageError for a prompt that does not fit with its tokens.
    """
    full: dict[Sampling, list[Run]] = {}
    session = bundle.session(mode="full")
    checks = []
    for setting in settings(bundle, values):
        progress(setting.name)
        try:
            if setting.sampling not in full:
                full[setting.sampling] = [_generate(session, ids, tokens, setting.sampling)[0] for ids in prompts]
            tally = _tally(bundle, walker, setting, prompts, full[setting.sampling], tokens, noise)
            checks.append(_check(setting, tally, _can_draft(bundle, setting)))
        except NumericError as e:
            checks.append(Check(setting.name, False, note=str(e)))
    return checks


def _tally(bundle: Bundle, walker: Walker, setting: Setting, prompts: Sequence[list[int]], full: Sequence[Run],
           tokens: int, noise: float) -> Tally:  # fmt: skip
    session = bundle.session(mode="exact", pending_cap=setting.cap, thresholds=setting.thresholds)
    tally = Tally()
    for number, (ids, wanted) in enumerate(zip(prompts, full, strict=True)):
        found, drafted, rejected = _generate(session, ids, tokens, setting.sampling)
        tally.walks += max(len(found[0]) - 1, 0)
        tally.drafted += drafted
        tally.rejected += rejected
        at = _first_difference(wanted, found)
        tally.compared += len(wanted[0]) if at is None else at
        if at is None:
            continue
        if at < min(len(wanted[0]), len(found[0])):
            gap = _score_gap(walker, ids, wanted[0][:at], wanted[0][at], found[0][at], setting.sampling)
            if gap <= 2 * noise:
                tally.ties += 1
                continue
        tally.mismatches += 1
        tally.faults.append(f"prompt {number}, token {at}")
    return tally


def _check(setting: Setting, tally: Tally, can_draft: bool) -> Check:
    must_draft = can_draft and setting.drafts_of is not None and tally.walks >= setting.drafts_of
    passed = not tally.mismatches and (tally.drafted > 0 or not must_draft)
    figures = {
        "tokens": tally.compared, "mismatches": tally.mismatches, "ties": tally.ties, "drafted": tally.drafted,
        "rejected": tally.rejected,
    }  # fmt: skip
    tolerance = {"mismatches": at_most(0), **({"drafted": at_least(1)} if must_draft else {})}
    detail = "the tokens of mode full"
    if tally.faults:
        detail = f"differs from mode full at {', '.join(tally.faults[:3])}"
    elif not passed:
        detail = "no token was a draft, so that nothing was compared"
    return Check(setting.name, passed, figures, tolerance, detail)


def _generate(session: Session, ids: list[int], tokens: int, sampling: Sampling) -> tuple[Run, int, int]:
    made = session.generate(ids, max_new_tokens=tokens, sampling=sampling, stop=())
    found = [token.id for token in made]
    return (found, made.stats.stop_reason), made.stats.drafted, made.stats.rejected


def _first_difference(wanted: Run, found: Run) -> int | None:
    """The first place where two runs differ; a run that the policy's budget ended may be shorter."""
    for at, (a, b) in enumerate(zip(wanted[0], found[0], strict=False)):
        if a != b:
            return at
    by_budget = "budget" in (wanted[1], found[1])
    return None if len(wanted[0]) == len(found[0]) or by_budget else min(len(wanted[0]), len(found[0]))


def _score_gap(
    walker: Walker, prompt: list[int], before: list[int], wanted: int, found: int, sampling: Sampling
) -> float:
    """How much the full model prefers one token to the other after `prompt` and `before`, in logits."""
    ids, source = sequence(walker.manifest, prompt, before)
    rows = walker.walk(ids, walker.prefill_widths(len(ids)), exits=False, source=source).logits[-1]
    scores = rows[[wanted, found]].astype(np.float64)
    if not sampling.greedy:
        scores += sampling.temperature * gumbel_noise(sampling.seed, len(ids), np.array([wanted, found]))
    return float(abs(scores[0] - scores[1]))


def _can_draft(bundle: Bundle, setting: Setting) -> bool:
    if setting.thresholds is None:
        return any(e.draft is not None for e in bundle.files.policy.exits)
    depth = bundle.files.policy.minimum_depth
    return any(e.layer >= depth and "never" not in e.gates for e in bundle.manifest.exits)


def _forced(bundle: Bundle, values: Sequence[Values | None]) -> Forced:
    """Thresholds for every exit: the boldest there are, or the medians of what it said."""
    vocab = bundle.manifest.model.vocab
    return {
        info.layer: {gate: _threshold(gate, said, vocab) for gate in info.gates}
        for info, said in zip(bundle.manifest.exits, values, strict=True)
    }


def _threshold(gate: Criterion, said: Values | None, vocab: int) -> float:
    low, high = criterion_range(gate, vocab)
    boldest = high if gate == "entropy" else low
    if said is None or gate not in said:
        return boldest
    middle = float(np.median(said[gate]))
    return min(max(middle, low), high) if math.isfinite(middle) else boldest
