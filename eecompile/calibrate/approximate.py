"""Calibrating the rules propagate and selected: a fixed path of policies, each run as it would be deployed.

With catch_up one trace of a document tells what any policy would emit, and one test covers every stricter policy too.
With the others a token that leaves early changes the keys and values that later tokens see, its own document's loss
included: no trace holds for two policies, and a stricter one may be worse. So what is tested is a fixed sequence of
policies, ordered from safe to bold by the path documents alone, each run over the test documents with their tokens
given. What comes out holds for the tested policies up to the chosen one, exactly as they are, and for no other.
"""

from typing import Final

import numpy as np

from eecompile.bundle.digest import gates_digest
from eecompile.calibrate.calibrate import TRACED_DOCUMENTS, Choice
from eecompile.calibrate.documents import Documents, Split
from eecompile.calibrate.guarantee import Guarantee, Losses, Tested, check_enough
from eecompile.calibrate.points import prices, threshold_path
from eecompile.calibrate.tables import Progress, check_finite, trace_tables
from eecompile.errors import UsageError
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.forced import Forced, run_forced
from eecompile.runtime.request import Limits, Settings
from eecompile.runtime.rules import ExitRule
from eecompile.runtime.trace import Tracer
from eecompile.schema import CalibrationResult, KVRule, RiskPoint

POINTS: Final = 12  # policies at most, each a run over all test documents
_SLOTS: Final = 8
_LOSS: Final = "share of a document's tokens that differ from the full model's, under the policy itself with "


def calibrate_approximate(
    bundle: Bundle, documents: Documents, *, kv: KVRule, risk: float, error: float, method: str = "ltt",
    progress: Progress = lambda stage: None,
) -> CalibrationResult:  # fmt: skip
    """As `calibrate`, for the rule `kv`. Raises as it does, and UsageError without that rule's graphs.

    Takes, for each policy, about the time of generating the test documents in batches of eight,
    or one by one in a bundle of one slot.
    """
    manifest = bundle.manifest
    bundle.settings(mode="full", kv=kv)  # refuses a bundle without the graphs
    if not manifest.exits:
        raise UsageError("the bundle has no exits to calibrate", where=str(bundle.files.path))
    model = manifest.model
    found = documents.counts(bundle.text, vocab=model.vocab, context=model.context)
    guarantee = Guarantee.of(method, risk, error)
    check_enough(found, guarantee, documents.path, limited=documents.cutoff is not None)
    table = trace_tables(bundle, documents, ("path",), progress)["path"]
    path = threshold_path(table, prices(manifest))
    stride = -(-len(path) // POINTS)
    texts, firsts, wanted = _references(bundle, documents, progress)
    slots = min(_SLOTS, manifest.slots)
    ran: list[tuple[float, Choice, list[Forced]]] = []
    losses: list[Losses] = []
    traces: list[list[str]] = []
    for number, (level, thresholds) in enumerate(path[::stride] if path else []):
        progress(f"policy {number + 1}: {len(texts)} documents")
        runs = run_forced(bundle, _settings(bundle, thresholds, kv), texts, first=firsts, slots=slots)
        ran.append((level, thresholds, runs))
        losses.append(_losses(runs, wanted))
        traces.append([_letters(run, right) for run, right in zip(runs, wanted, strict=True)][:TRACED_DOCUMENTS])
        if not guarantee.all_pass(losses, shares=True):
            break
    tested, chosen = guarantee.test(np.stack(losses, axis=1), shares=True) if losses else ([], None)
    points = [_point(*point, found, model.layers) for point, found in zip(ran, tested, strict=True)]
    return CalibrationResult(
        precision=manifest.precision,
        cache=manifest.cache,
        kv=kv,
        pending_cap=manifest.pending_cap,
        method=guarantee.name,
        loss=_LOSS + kv,
        risk=risk,
        error=guarantee.error,
        documents=len(texts),
        tokens=sum(len(right) for right in wanted),
        data=documents.sha256,
        gates=gates_digest(manifest.exits, bundle.files.policy.exits),
        path=points,
        chosen=chosen,
        traces=[] if chosen is None else traces[chosen],
        splits=found,
    )


def _references(
    bundle: Bundle, documents: Documents, progress: Progress
) -> tuple[list[list[int]], list[int], list[list[int]]]:
    """The test documents' ids, how many of them run at full depth, as a prompt does (the first, if there is none), and
    the full model's choice after each of the others."""
    model, tracer = bundle.manifest.model, Tracer(bundle, exits=False)
    texts, firsts, wanted = list[list[int]](), list[int](), list[list[int]]()
    test: Split = "test"
    for document in documents.stream(bundle.text, vocab=model.vocab, context=model.context, splits=[test]):
        progress(f"full model, document {len(texts) + 1}")
        trace = tracer.trace(document.ids)
        check_finite(trace, documents)
        texts.append(document.ids)
        firsts.append(max(1, document.first))
        wanted.append(trace.final.token[firsts[-1] :].tolist())
    return texts, firsts, wanted


def _settings(bundle: Bundle, thresholds: Choice, kv: KVRule) -> Settings:
    """The policy of these thresholds, which nothing allows yet."""
    exits = bundle.manifest.exits
    rules = [
        None if t is None else ExitRule.of(i, exits[i].layer, t, exits[i].schedule) for i, t in enumerate(thresholds)
    ]
    return Settings("confident", rules, Limits(cap=bundle.manifest.pending_cap), exits, kv)


def _losses(runs: list[Forced], wanted: list[list[int]]) -> Losses:
    """Of each document [n]: the share of tokens that are not the full model's."""
    pairs = zip(runs, wanted, strict=True)
    return np.array([np.mean(np.asarray(run.tokens) != np.asarray(right)) for run, right in pairs], np.float64)


def _point(level: float, thresholds: Choice, runs: list[Forced], tested: Tested, layers: int) -> RiskPoint:
    depths = np.concatenate([run.depths for run in runs])
    return tested.point(level, thresholds, depths < layers, depths)


def _letters(run: Forced, wanted: list[int]) -> str:
    """CalibrationResult's letters, of an exit that fired by whether it was right."""
    rows = zip(run.said, run.tokens, wanted, strict=True)
    return "".join(said.replace("f", "a" if token == right else "x") for said, token, right in rows)
