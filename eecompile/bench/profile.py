"""Measure what a pass of each graph costs on this machine, and keep it in the bundle as a profile.

What is timed is what a session runs: the staircase's, the head's and the exits' own bindings, padding to
`minimum_rows` and the copies between boundaries included, in the order of a decoding step, so that a segment's weights
are as cold in the processor's caches as they are when decoding. Rounds go over all passes in turn: what slows the
machine for a while slows all of them alike, and the median drops it.
"""

import platform
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import ParamSpec, TypeVar

from eecompile import contract as c
from eecompile.bundle.manifest import Profile
from eecompile.bundle.policy import read_for_change
from eecompile.bundle.write import write_overlay
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.heads import head_graph
from eecompile.runtime.staircase import Rows, Staircase

P = ParamSpec("P")
T = TypeVar("T")
Progress = Callable[[str], None]
PREFILL_EVERY = 4  # rounds; a prefill pass takes as long as a dozen decoding passes


@dataclass(frozen=True)
class Effort:
    """Live cache lengths and prefill rows to measure; rounds go on until `seconds` are spent, at least `least` and at
    most `most` of them."""

    lengths: tuple[int, ...]
    prefill: tuple[int, ...]
    seconds: float
    least: int
    most: int


QUICK = Effort(lengths=(64, 512), prefill=(128,), seconds=4.5, least=3, most=15)
FULL = Effort(lengths=(64, 512, 2048), prefill=(32, 128), seconds=40.0, least=5, most=60)


def measure_profile(bundle: Bundle, *, quick: bool, progress: Progress = lambda stage: None) -> dict[str, object]:
    """Median seconds of one pass of every graph, as the fields of a Profile: device, threads and passes.

    Segments by rows (1 to the pending cap + 1, and a prefill's) and live cache length, embed and head by rows, exits
    and small heads over the one row that they are asked for. quick: fewer lengths and rounds, for the end of a build.
    Before each round `progress` is told its number. Memory: the cache of one sequence as long as the longest length.
    """
    effort, manifest = QUICK if quick else FULL, bundle.manifest
    lengths = sorted({min(n, manifest.model.context) for n in effort.lengths})
    decode = [(rows, n) for n in lengths for rows in decode_rows(manifest.pending_cap) if rows <= n]
    chunks = {min(rows, manifest.prefill_rows, lengths[-1]) for rows in effort.prefill}
    prefill = [(rows, n) for n in lengths for rows in sorted(chunks) if manifest.pending_cap + 1 < rows <= n]
    began, done = perf_counter(), 0
    walker = _Walker(bundle, lengths)
    walker.walk(prefill + decode)  # makes the bindings and fills every boundary
    walker.times.clear()
    while done < effort.least or (done < effort.most and perf_counter() - began < effort.seconds):
        progress(f"profile round {done + 1}")
        walker.walk(decode + (prefill if done % PREFILL_EVERY == 0 else []))
        done += 1
    passes = [
        {"graph": graph, "rows": rows, "length": length, "seconds": median(times)}
        for (graph, rows, length), times in sorted(walker.times.items())
    ]
    return {"device": bundle.graphs.embed.memory.gpu or device_name(), "threads": bundle.threads, "passes": passes}


def write_profile(bundle: Path, profile: Mapping[str, object], key: Path | None = None) -> Profile:
    """Write what `measure_profile` returned to overlays/profile-<target>.json, in one step; return it as written.

    key: PEM file of the private key of a signed bundle. Raises UsageError where that is missing or the fields are
    refused, IntegrityError where the bundle is not intact.
    """
    files = read_for_change(bundle, key)
    target = re.sub(r"[^A-Za-z0-9_]+", "-", files.manifest.target)
    name = f"overlays/profile-{target.strip('-')[:80] or 'device'}.json"
    return Profile.model_validate(write_overlay(bundle, name, profile, key=key))


def device_name() -> str:
    """The processor's name, at most 200 characters."""
    try:
        found = re.search(r"^model name\s*:\s*(\S.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return (found[1].strip() if found else platform.processor() or platform.machine() or "unknown")[:200]


def decode_rows(cap: int) -> list[int]:
    """Rows of the passes to measure for decoding: 1, 2, 3, 5, 9, ... and cap + 1, the most a pass can have."""
    return sorted({1, cap + 1, *(2**i + 1 for i in range(cap.bit_length()) if 2**i <= cap)})


class _Walker:
    """Full-depth steps over a staircase that is put into the state to be timed; `times` by (graph, rows, length)."""

    def __init__(self, bundle: Bundle, lengths: Sequence[int]) -> None:
        manifest = bundle.manifest
        model, cap = manifest.model, manifest.pending_cap
        self.times: defaultdict[tuple[str, int, int], list[float]] = defaultdict(list)
        self._stairs = {n: Staircase(manifest, bundle.graphs) for n in lengths}
        self._askers = {n: bundle.askers() for n in lengths}
        self._heads, self._infos = bundle.heads(cap + 1), manifest.exits
        self._cap, self._vocab, self._propagates = cap, model.vocab, bool(bundle.graphs.kv)
        for length, stairs in self._stairs.items():  # each with caches as long as a sequence of that length has
            stairs.begin([0] * length)  # a source as long as the target, where there is one
            stairs.caches.resize(length)
            stairs.watch(self._askers[length], range(len(manifest.exits)))
            for tensors in stairs.caches.tensors if not bundle.graphs.embed.memory.gpu else ():
                for cache in tensors.values():  # untouched memory is one page of zeros, faster to read than a real one
                    cache[:] = 0.01

    def walk(self, states: list[tuple[int, int]]) -> None:
        """One step for each (rows, length): the newest token of a decoding pass, or a prefill chunk, at full depth."""
        for rows, length in states:
            if rows > self._cap + 1:
                self._descend(rows, length, embedded=rows, ask=False)
            else:
                finished = self._descend(rows, length, embedded=1, ask=True)
                self._timed("head", rows, 0, self._heads[c.FULL_HEAD], finished)

    def _descend(self, rows: int, length: int, *, embedded: int, ask: bool) -> Rows:
        stairs = self._stairs[length]
        stairs.length, stairs.filled = length - embedded, [length - rows] * len(stairs.schedule)
        stairs.waiting = [rows - embedded] + [0] * len(stairs.schedule)
        for watcher in stairs.watchers.values():
            watcher.filled[0], watcher.waiting[0] = length - rows, 0
        ids = [(length - i) * 7919 % self._vocab for i in range(embedded)]
        self._timed("embed", embedded, 0, stairs.append, ids)
        for k, step in enumerate(stairs.schedule):
            finished = self._timed(f"segment_{step.segment}", rows, length, stairs.run_step, k)
            if ask and step.exit is not None:  # one with a layer of its own runs all of the rows
                shape = (rows, length) if step.exit in stairs.watchers else (1, 0)
                said = self._timed(f"exit_{step.exit}", *shape, self._askers[length][step.exit], finished[-1:])
                if (name := self._infos[step.exit].head) != c.FULL_HEAD:
                    self._timed(head_graph(name), 1, 0, self._heads[name], said.hidden)
        if ask and self._propagates:
            self._fill(rows, length)
        return finished

    def _fill(self, rows: int, length: int) -> None:
        """The K/V-only passes over as many rows."""
        stairs = self._stairs[length]
        for k, step in list(enumerate(stairs.schedule))[1:]:
            stairs.filled[k], stairs.waiting[k], stairs.left[k] = length - rows, rows, rows
            self._timed(f"kv_{step.segment}", rows, length, stairs.pool.fill, k, [stairs])
            stairs.waiting[k + 1] = stairs.left[k + 1] = 0

    def _timed(self, graph: str, rows: int, length: int, run: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        began = perf_counter()
        result = run(*args, **options)
        self.times[graph, rows, length].append(perf_counter() - began)
        return result
