"""The cost model: what passes of a model would take on a device that is not at hand, as PassCosts that replay prices.

works: of every graph, from a student's shapes (work_student.py) or a bundle's files (work_bundle.py). A profile, once
there is one, replaces all of this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eecompile import contract as c
from eecompile.bench.cost import Curve, PassCosts
from eecompile.bench.profile import decode_rows
from eecompile.bench.rates import Rates
from eecompile.bench.work import Work
from eecompile.bundle.manifest import ExitInfo, Graphs, Manifest, ModelInfo, Step
from eecompile.schema import GraphInfo
from eecompile.target import Target

LENGTHS = (64, 512, 2048, 8192, 32768, 131072)
TYPICAL_LENGTH = 512  # tokens in the cache of the step that is priced


@dataclass(frozen=True)
class Setting:
    """How a build runs. cap: tokens that may be pending. minimum_rows: passes are padded to so many. context, slack:
    positions of the cache, in tokens; fixed: every pass reads all of them, as an engine of fixed shapes does. copies:
    every pass reads and writes the caches once more, since its operators cannot update them in place."""

    cap: int
    minimum_rows: int
    prefill_rows: int
    context: int
    slack: int
    fixed: bool = False
    copies: bool = False

    @classmethod
    def on(
        cls, target: Target, *, cap: int, minimum_rows: int, prefill_rows: int, context: int, slack: int
    ) -> "Setting":
        """The setting of a build for the target: engines have caches of one length, and those of the classic dialect no
        operator that updates them in place."""
        engine = target.backend != "onnxruntime"
        copies = engine and target.dialect == "classic"
        return cls(cap, minimum_rows, prefill_rows, context, slack, fixed=engine, copies=copies)

    @property
    def lengths(self) -> list[int]:
        """Cache lengths to price, within the context."""
        if self.fixed:
            return [self.context + self.slack]
        return sorted({min(n, self.context) for n in LENGTHS})

    @property
    def rows(self) -> list[int]:
        """Rows to price: those of decoding passes, and a prefill's."""
        return sorted({*decode_rows(self.cap), self.prefill_rows})

    def work(self, work: Work, rows: int, length: int) -> tuple[Work, int, int]:
        """(work, rows, length) that a pass of `rows` rows comes to."""
        if self.copies:  # read and written beside what attention reads
            work = replace(work, cached=3 * work.cached)
        return work, max(rows, self.minimum_rows), self.context + self.slack if self.fixed else length


def predict_costs(works: Mapping[str, Work], rates: Rates, setting: Setting) -> PassCosts:
    """Seconds of a pass of every graph by rows and live cache length, as `rates` predict them."""
    lengths = np.array(setting.lengths, np.float64)

    def curve(work: Work, rows: int) -> Curve:
        seconds = [rates.seconds(*setting.work(work, rows, n)) for n in setting.lengths]
        return lengths, np.array(seconds, np.float64)

    curves = {name: {rows: curve(work, rows) for rows in setting.rows} for name, work in works.items()}
    return PassCosts(curves, rates.basis)


def pass_bytes(
    works: Mapping[str, Work], rates: Rates, setting: Setting, passes: Mapping[tuple[str, int], int]
) -> float:
    """Bytes that these passes move at a typical length."""
    length = min(TYPICAL_LENGTH, setting.context)
    total = 0.0
    for (graph, asked), count in passes.items():
        work, rows, tokens = setting.work(works[graph], asked, length)
        total += count * work.bytes(rows, tokens, rates.value)
    return total


def outline(exits: Sequence[ExitInfo], schedule: Sequence[Step], layers: Sequence[int]) -> Manifest:
    """What a replay reads of a manifest, of a model that no bundle is of: its exits, the steps and the layers of each
    segment. Nothing is validated."""
    segments = [GraphInfo(path=f"segment_{i}", inputs=[], outputs=[], layers=n) for i, n in enumerate(layers)]
    depth = sum(layers[step.segment] for step in schedule)
    return Manifest.model_construct(
        exits=list(exits), schedule=list(schedule), graphs=Graphs.model_construct(segments=segments),
        model=ModelInfo.model_construct(layers=depth), task=c.CAUSAL_LM,
    )  # fmt: skip
