"""What decoding in a mode comes to by the cost model: letters replayed through the loop, alone and side by side."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np

from eecompile.bench.cost import Mode, PassCosts, full_depth_seconds, simulate
from eecompile.bench.cost_model import Setting, pass_bytes
from eecompile.bench.defaults import best_subset
from eecompile.bench.rates import Rates
from eecompile.bench.replay_batch import BatchReplay
from eecompile.bench.work import Work
from eecompile.bundle.manifest import Manifest
from eecompile.runtime.plan import PASS_ROWS, rows_of_a_pass

BATCH_STEPS = 192  # of a batch that is replayed: several times the most that may be pending
Passes = Mapping[tuple[str, int, int], int]  # by graph, slots and rows of each


@dataclass(frozen=True)
class Forecast:
    """Decoding in one mode with the exits after these layers open. basis: what is known of when they fire. speedup:
    over full depth. layer_rows, bytes: of a token, everything included. slots: sequences side by side, whose tokens
    count together; speedup is then over full depth of as many."""

    mode: Mode
    exits: Sequence[int]
    basis: str
    tokens_per_second: float
    speedup: float
    mean_depth: float
    layer_rows: float
    bytes: float
    slots: int = 1


@dataclass(frozen=True)
class Player:
    """Replays letters through the loop, priced by the cost model. works, rates, setting: what `costs` are predicted
    from. length: tokens in the cache."""

    manifest: Manifest
    works: Mapping[str, Work]
    rates: Rates
    setting: Setting
    costs: PassCosts
    length: int

    def full(self) -> Forecast:
        """Every token runs every layer."""
        steps = [(f"segment_{step.segment}", 1) for step in self.manifest.schedule]
        passes = [("embed", 1), *steps, ("head", 1)]
        moved = sum(pass_bytes(self.works, self.rates, self.setting, {passed: 1}) for passed in passes)
        depth = self.manifest.model.layers
        return Forecast("full", [], "", 1 / self._full_seconds(), 1.0, depth, depth, moved)

    def play(self, mode: Mode, letters: Sequence[str], exits: Sequence[int], basis: str) -> Forecast:
        """In `mode`, with these exits open."""
        played = simulate(
            self.manifest, self.costs, letters, open_exits=exits, mode=mode, cap=self.setting.cap, length=self.length
        )
        return Forecast(
            mode=mode,
            exits=[self.manifest.exits[i].layer for i in exits],
            basis=basis,
            tokens_per_second=1 / played.seconds_per_token,
            speedup=self._full_seconds() / played.seconds_per_token,
            mean_depth=played.mean_depth,
            layer_rows=played.layer_rows_per_token,
            bytes=pass_bytes(self.works, self.rates, self.setting, played.passes) / played.tokens,
        )

    def best(self, mode: Mode, letters: Sequence[str], able: Sequence[int], basis: str) -> Forecast:
        """With those of the exits open that together take the least time."""
        chosen = best_subset(able, lambda some: 1 / self.play(mode, letters, sorted(some), basis).tokens_per_second)
        return self.play(mode, letters, sorted(chosen), basis)

    def side_by_side(self, alone: Forecast, letters: Sequence[str], slots: int) -> Forecast:
        """The same for so many sequences at once: a pass reads the weights once for all of them, and each one's cache.
        letters: what `alone` was played by. Raises ValueError for exits with a layer of their own."""
        every_step = self._full_step(slots)
        passes, depths = every_step, {len(self.manifest.schedule) - 1: slots}
        if alone.mode != "full":
            passes, depths = self._replayed(alone, letters, slots)
        tokens, layers = sum(depths.values()), self._layers()
        until = np.cumsum([layers[f"segment_{step.segment}"] for step in self.manifest.schedule])
        rows = sum(layers.get(graph, 0) * wide * rows * n for (graph, wide, rows), n in passes.items())
        seconds, moved = self._price(passes)
        return replace(
            alone,
            slots=slots,
            tokens_per_second=tokens / seconds,
            speedup=self._price(every_step)[0] / slots * tokens / seconds,
            mean_depth=float(sum(until[step] * n for step, n in depths.items())) / tokens,
            layer_rows=rows / tokens,
            bytes=moved / tokens,
        )

    def _replayed(self, alone: Forecast, letters: Sequence[str], slots: int) -> tuple[Passes, dict[int, int]]:
        """Passes of a batch whose slots never fall free, and its tokens by the step that they left after."""
        opened = {i for i, info in enumerate(self.manifest.exits) if info.layer in alone.exits}
        replay = BatchReplay(
            self.manifest, cycle(letters), opened, self.setting, exact=alone.mode == "exact", slots=slots,
            each_pass=self._each_pass(),
        )  # fmt: skip
        replay.run(BATCH_STEPS)
        return replay.passes, replay.depths

    def _full_step(self, slots: int) -> Passes:
        steps = Counter((f"segment_{step.segment}", slots, 1) for step in self.manifest.schedule)
        return Counter({("embed", 1, slots): 1, ("head", 1, slots): 1}) + steps

    def _price(self, passes: Passes) -> tuple[float, float]:
        """Seconds and bytes of these passes."""
        seconds = moved = 0.0
        for (graph, slots, asked), count in passes.items():
            work, rows, length = self.setting.work(self.works[graph], asked, self.length)
            seconds += count * self.rates.seconds(work, rows, length, slots)
            moved += count * work.bytes(rows, length, self.rates.value, slots)
        return seconds, moved

    def _each_pass(self) -> float:
        """What a pass costs, in rows, to the runtime that plans them: a profile's figure where it has one, as on the
        processor after a build, and else a constant."""
        if self.setting.fixed:
            return PASS_ROWS
        few = self.setting.cap + 1
        times = [sum(self.costs.seconds(name, rows, self.length) for name in self._layers()) for rows in (1, few)]
        return rows_of_a_pass(times[0], times[1], few)

    def _layers(self) -> dict[str, int]:
        return {f"segment_{i}": segment.layers for i, segment in enumerate(self.manifest.graphs.segments)}

    def _full_seconds(self) -> float:
        return full_depth_seconds(self.manifest, self.costs, self.length)
