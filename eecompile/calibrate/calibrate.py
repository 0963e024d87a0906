"""`calibrate`: how boldly a bundle's exits may fire, with a guarantee over documents.

The path documents order thresholds from safe to bold (points.py), the test documents decide how far along the path the
loss provably stays under the risk (ltt.py). Everything is traced teacher-forced, once, on the bundle as it is: its own
precision, exits and gate weights.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.bundle.digest import gates_digest
from eecompile.bundle.policy import adopt_calibration
from eecompile.bundle.read import BundleFiles, read_bundle
from eecompile.calibrate.documents import Documents, Split, load_documents
from eecompile.calibrate.guarantee import Guarantee, Losses, Tested, check_enough
from eecompile.calibrate.ltt import union_losses
from eecompile.calibrate.points import prices, threshold_path
from eecompile.calibrate.tables import Progress, TokenTable, trace_tables
from eecompile.errors import UsageError
from eecompile.runtime.bundle import Bundle
from eecompile.schema import CalibrationResult, RiskPoint, Thresholds

RISK: Final = 0.05
ERROR: Final = 0.05
TRACED_DOCUMENTS: Final = 200
_TRACE_LETTERS: Final = 1 << 20
_LOSS: Final = "share of a document's tokens where any exit fires and disagrees with the full model"
Choice = Sequence[Thresholds | None]


def calibrate(
    bundle: Bundle,
    documents: Documents,
    *,
    risk: float = RISK,
    error: float = ERROR,
    method: str = "ltt",
    progress: Progress = lambda stage: None,
) -> CalibrationResult:
    """Calibrate the exits of `bundle` on the path and test splits of `documents`.

    With probability 1 - `error` over the test documents, an expected document of their kind has a loss of at most
    `risk` at the chosen thresholds: for every policy at or safer than those. method: "crc" has it so in expectation
    over the test documents, whatever `error` (guarantee.py). Nothing is written.
    Raises UsageError where there are no exits or too few documents for the risk, NumericError for non-finite logits.
    """
    manifest, policy = bundle.manifest, bundle.files.policy
    if not manifest.exits:
        raise UsageError(
            "the bundle has no exits to calibrate", where=str(bundle.files.path), mend="build it with --exits"
        )
    found = documents.counts(bundle.text, vocab=manifest.model.vocab, context=manifest.model.context)
    guarantee = Guarantee.of(method, risk, error)
    check_enough(found, guarantee, documents.path, limited=documents.cutoff is not None)
    tables = trace_tables(bundle, documents, ("path", "test"), progress)
    drafts = [e.draft for e in policy.exits]
    return calibrate_tables(
        bundle, documents.sha256, tables["path"], tables["test"], drafts, guarantee=guarantee, splits=found
    )


def calibrate_file(
    bundle: Bundle,
    data: Path,
    *,
    risk: float = RISK,
    error: float = ERROR,
    method: str = "ltt",
    limit: int | None = None,
    kv: str = "catch_up",
    progress: Progress = lambda stage: None,
) -> CalibrationResult:
    """As `calibrate`, with at most `limit` of the documents at `data` (`load_documents`), for the K/V rule `kv`. Raises
    as both."""
    from eecompile.calibrate.approximate import calibrate_approximate

    documents = load_documents(data, limit=limit)
    for rule in c.APPROXIMATE:
        if rule == kv:
            return calibrate_approximate(
                bundle, documents, kv=rule, risk=risk, error=error, method=method, progress=progress
            )
    return calibrate(bundle, documents, risk=risk, error=error, method=method, progress=progress)


def calibrate_tables(
    bundle: Bundle, data: str, path: TokenTable, test: TokenTable, drafts: Choice, *, guarantee: Guarantee,
    splits: Mapping[Split, int],
) -> CalibrationResult:  # fmt: skip
    """As `calibrate`, from traced documents. data: their SHA-256. drafts: the thresholds that `draft_traces` are at.
    splits: how many documents of the data each split has."""
    manifest = bundle.manifest
    candidates = threshold_path(path, prices(manifest))
    losses = [table_losses(test, thresholds) for _, thresholds in candidates]
    tested, chosen = guarantee.test(np.stack(losses, axis=1), shares=True) if losses else ([], None)
    points = [_point(test, *candidate, found) for candidate, found in zip(candidates, tested, strict=True)]
    return CalibrationResult(
        precision=manifest.precision,
        cache=manifest.cache,
        kv="catch_up",
        pending_cap=manifest.pending_cap,
        method=guarantee.name,
        loss=_LOSS,
        risk=guarantee.risk,
        error=guarantee.error,
        documents=test.count,
        tokens=len(test.documents),
        data=data,
        gates=gates_digest(manifest.exits, bundle.files.policy.exits),
        path=points,
        chosen=chosen,
        traces=[] if chosen is None else letters(test, points[chosen].thresholds),
        draft=list(drafts),
        draft_traces=letters(test, drafts),
        splits=dict(splits),
    )


def apply_calibration(bundle: Path, result: CalibrationResult, key: Path | None = None) -> None:
    """Write `result` into the bundle at `bundle`, with a policy whose confident exits are at the chosen thresholds.

    Where nothing was chosen the exits are closed (of another rule than the policy's: it stays as it is). The
    policy's K/V rule becomes the result's. Drafts, gates, minimum depth and budget stay. key: the private key
    of a signed bundle. Raises UsageError where the result is another build's, and as `adopt_calibration`.
    """
    files = read_bundle(bundle, integrity="size")
    _check_belongs(files, result)
    thresholds: Choice = [None] * len(files.policy.exits)
    reason = f"no threshold was shown to keep a risk of {result.risk:g}"
    if result.chosen is not None:
        thresholds, reason = result.path[result.chosen].thresholds, "no threshold was safe enough"
    exits = [
        e.model_copy(update={"confident": t, "reason": "" if t else reason})
        for e, t in zip(files.policy.exits, thresholds, strict=True)
    ]
    name = f"overlays/calibration-{result.precision}-{result.kv}-{result.pending_cap}.json"
    changed = {"exits": exits, "kv": result.kv}
    if result.kv != "catch_up" and result.chosen is None and files.policy.kv != result.kv:
        changed = {}
    adopt_calibration(bundle, name, result, files.policy.model_copy(update=changed), key=key)


def letters(table: TokenTable, thresholds: Choice) -> list[str]:
    """What the exits say at `thresholds` of the first 200 documents, in the letters of CalibrationResult."""
    said = np.full((len(table.documents), len(table.exits)), ord("."), np.uint8)
    for g, (exit_, chosen) in enumerate(zip(table.exits, thresholds, strict=True)):
        fires = exit_.fires(chosen)
        said[exit_.passes_cheap(chosen), g] = ord("h")
        said[fires & exit_.agrees, g] = ord("a")
        said[fires & ~exit_.agrees, g] = ord("x")
    most = _TRACE_LETTERS // max(1, len(table.exits))
    starts = table.starts[: TRACED_DOCUMENTS + 1]
    return [said[a:b][:most].tobytes().decode() for a, b in itertools.pairwise(starts)]


def fired(table: TokenTable, thresholds: Choice) -> NDArray[np.bool_]:
    """Whether each exit fires on each token [T, exits]."""
    return np.stack([e.fires(t) for e, t in zip(table.exits, thresholds, strict=True)], axis=1)


def table_losses(table: TokenTable, thresholds: Choice) -> Losses:
    """The loss of the union of exits of each document [n]."""
    wrong = fired(table, thresholds) & ~np.stack([e.agrees for e in table.exits], axis=1)
    return union_losses(wrong, table.documents, table.count)


def _point(table: TokenTable, level: float, thresholds: Choice, tested: Tested) -> RiskPoint:
    fires = fired(table, thresholds)
    return tested.point(level, thresholds, np.any(fires, axis=1), _depths(table, fires))


def _depths(table: TokenTable, fires: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Layers that run before each token is emitted [T]: those of the first exit that fires, or all."""
    layers = np.array([e.layer for e in table.exits])
    return np.where(fires.any(axis=1), layers[fires.argmax(axis=1)], table.layers)


def _check_belongs(files: BundleFiles, result: CalibrationResult) -> None:
    manifest = files.manifest
    own = (manifest.precision, manifest.cache, manifest.pending_cap, gates_digest(manifest.exits, files.policy.exits))
    if own != (result.precision, result.cache, result.pending_cap, result.gates) or result.kv not in manifest.kv_rules:
        mend = "calibrate this bundle itself: `eecompile calibrate BUNDLE --data FILE`"
        raise UsageError("the calibration is of another build or of other gates", where=str(files.path), mend=mend)
