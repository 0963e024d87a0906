"""The report's sections on what was measured: headline, speed, depth, quality, time, saved work."""

from collections.abc import Sequence
from html import escape

from eecompile.bench.markup import figure, legend, section, table, tag
from eecompile.bench.plots import Bar, Line, Mark, Part, axis, bars, columns, curves, descent, stacked
from eecompile.bench.results import BenchResult, ModeResult
from eecompile.bench.summary import RUNTIME
from eecompile.bundle.manifest import Calibration, Manifest

BEYOND = 2.5  # times the allowed risk up to which the calibration's path is drawn
WHAT = {
    "full": "every token runs every layer",
    "confident": "a token leaves at the first calibrated exit that is sure",
    "exact": "exits draft, full depth verifies: its tokens are full depth's",
}


def headline(bench: BenchResult) -> str:
    """The numbers to remember."""
    cards = []
    for mode in ("exact", "confident"):
        found = bench.modes.get(mode)
        if found is None:
            reason = bench.refused.get(mode, "not measured")
            cards.append(_card(mode, "refused", f"{mode} mode", reason))
        else:
            cards.append(_mode_card(mode, found))
    full = bench.modes["full"]
    precision = f"full depth, {bench.precision}, {_count(bench.machine.threads, 'thread')}"
    cards.append(_card("full", f"{full.tokens_per_second:.1f}", "tokens per second", precision))
    if bench.chain_over_uncut is not None:
        said = "time of the chain of segments over that of the uncut graph"
        cards.append(_card("uncut", f"{bench.chain_over_uncut:.2f}×", "price of the cut", said))
    best = max((found.tokens_per_second for found in bench.modes.values() if _same_tokens(found)), default=0.0)
    for name, peer in bench.peers.items():
        said = f"best mode with full depth's tokens, {best:.1f}, over {name}'s {peer.tokens_per_second:.1f} tokens/s"
        cards.append(_card("peer", f"{best / peer.tokens_per_second:.2f}×", f"against {name}", said))
    cards.append(_card("memory", f"{bench.peak_memory_mb:,.0f} MB", "peak resident memory", bench.memory_includes))
    return tag("div", "".join(cards), class_="cards")


def speed_section(bench: BenchResult) -> str:
    """Tokens per second of every contender."""
    full = bench.modes["full"]
    rows, notes = [], {}
    for mode, found in bench.modes.items():
        rows.append(_speed_bar(mode, mode, found.tokens_per_second, found.round_seconds, found.speedup))
        notes[mode] = found.note or WHAT.get(mode, "")
    if bench.uncut is not None:
        ratio = bench.uncut.tokens_per_second / full.tokens_per_second
        rows.append(_speed_bar("uncut", "uncut", bench.uncut.tokens_per_second, bench.uncut.round_seconds, ratio))
        notes["uncut"] = "the whole model as one graph in the same engine"
    for name, peer in bench.peers.items():
        rows.append(_speed_bar(name, "peer", peer.tokens_per_second, peer.round_seconds, 1 / peer.speed_ratio))
        same = f"full depth's tokens in {peer.equal_prompts} of {_count(bench.prompts, 'prompt')}"
        notes[name] = f"{peer.precision}, {_count(peer.threads, 'thread')}, {same}"
    notes |= {**bench.refused, **bench.skipped}
    lead = (
        f"Greedy decoding of {_count(bench.prompts, 'prompt')}, {bench.max_new_tokens} new tokens each, in "
        f"{_count(bench.rounds, 'round')} that alternate between all contenders; the middle round counts, the thin "
        "line spans all of them, the dotted one is full depth."
    )
    listed = "".join(tag("li", f"{tag('b', escape(name))} {escape(words)}") for name, words in notes.items())
    body = bars(rows, "Tokens per second", mark=full.tokens_per_second) + tag("ul", listed, class_="notes")
    return section("speed", "Speed", lead, body)


def exit_section(bench: BenchResult) -> str:
    """Where tokens leave: a histogram over depth, and for each mode the tokens that are still running."""
    found = {mode: result for mode, result in bench.modes.items() if mode != "full"}
    depths = sorted({depth for result in found.values() for depth in result.exit_layers} | {bench.layers})
    shares = {mode: _shares(result) for mode, result in found.items()}
    series = [(mode, mode, [shares[mode].get(depth, 0.0) for depth in depths]) for mode in found]
    groups = [f"{depth}" if depth < bench.layers else f"all {depth}" for depth in depths]
    histogram = columns(groups, series, "Share of tokens by exit", lambda share: f"{share:.0%}")
    flows = ""
    for mode, result in found.items():
        words = f"a token waits for {result.mean_depth:.1f} of {bench.layers} layers"
        plot = descent(sorted(shares[mode].items()), bench.layers, mode, f"{mode}: {words}")
        flows += figure(mode, words, plot)
    lead = "Share of tokens by the layers that ran before they were emitted (in exact mode: drafted and found right)."
    body = legend([(mode, mode, 1.0) for mode in found]) + histogram + tag("div", flows, class_="pair")
    return section("exits", "Where tokens leave", lead, body)


def quality_section(bench: BenchResult | None, calibrations: Sequence[Calibration], layers: int) -> str:
    """Risk against layers saved: the calibration's path with the chosen point, and the measured modes."""
    if bench is None and not calibrations:
        return section("quality", "Quality against speed", "Neither calibrated nor measured yet.", "")
    lines, marks, limit = [], [], None
    for found in calibrations[:1]:
        path = [(1 - point.mean_depth / layers, point.risk) for point in found.path]
        shown = [p for p in path if p[1] <= BEYOND * found.risk]
        lines.append(Line("calibration", "confident", shown))
        limit = (found.risk, f"allowed: {found.risk:.1%}, held {_held(found)}")
        if found.chosen is not None:
            marks.append(Mark("chosen", *path[found.chosen], "chosen", below=True))
    for mode, result in {} if bench is None else bench.modes.items():
        saved = 0.0 if mode == "full" else max(0.0, 1 - result.mean_depth / layers)
        marks.append(Mark(mode, saved, 1 - result.agreement, mode))
    every = [
        *(p for line in lines for p in line.points),
        *((m.x, m.y) for m in marks),
        (0.05, limit[0] if limit else 0.01),
    ]
    x = axis([p[0] for p in every], lambda v: f"{v:.0%}", "layers that no token waited for", low=0.0)
    y = axis([p[1] for p in every], lambda v: f"{100 * v:.3g}%", "tokens that differ from the full model's", low=0.0)
    lead = "Down and right is better. The curve is the calibration's path from safe to bold; the dots are measured."
    if not calibrations:
        lead = "Down and to the right is better. These exits are not calibrated, so that confident mode refuses them."
    return section(
        "quality", "Quality against speed", lead, curves(lines, marks, x, y, "Risk by saved layers", limit=limit)
    )


def _held(found: Calibration) -> str:
    return "in expectation" if found.error is None else f"with {1 - found.error:.0%} confidence"


def time_section(bench: BenchResult) -> str:
    """Where a token's time goes, by graph."""
    names = [name for result in bench.modes.values() for name in result.time]
    segments = sorted({n for n in names if n.startswith("segment_")}, key=lambda n: int(n.removeprefix("segment_")))
    rows = []
    for mode, result in bench.modes.items():
        total = sum(result.time.values())
        note = f"{1000 * total:.1f} ms a token, {result.overhead:.1%} outside the engines"
        rows.append((mode, note, _time_parts(result, segments)))
    kinds = [(part.name, part.kind, part.shade) for part in max((parts for *_, parts in rows), key=len)]
    body = stacked(rows, "Time per token", lambda v: f"{1000 * v:.2f} ms") + legend(kinds)
    cells = [[t.graph, str(t.rows), f"{1000 * t.seconds:.3f} ms", f"{t.passes:,}"] for t in bench.graphs]
    details = tag("summary", "One token's pass of each graph") + table(["graph", "rows", "median", "passes"], cells)
    lead = "Mean milliseconds of an emitted token, catching up and refused drafts included; shades are the segments."
    return section("time", "Where a token's time goes", lead, body + tag("details", details))


def saved_section(bench: BenchResult) -> str:
    """Layers saved, what they are worth, and what was realised, for each mode that exits."""
    figures = ""
    for mode in ("confident", "exact"):
        found = bench.modes.get(mode)
        if found is None:
            continue
        by_layers = bench.layers / max(found.mean_depth, 1e-9)
        rows = [
            Bar("layers alone", f"{by_layers:.2f}×", by_layers, mode, shade=0.35),
            Bar("ideal: exits and heads paid for", f"{found.ideal_speedup:.2f}×", found.ideal_speedup, mode, shade=0.6),
            Bar("measured: everything", f"{found.speedup:.2f}×", found.speedup, mode),
        ]
        words = [f"{found.layer_rows:.1f} rows through layers a token, {bench.layers} at full depth"]
        if found.drafted:
            kept = found.drafted - found.rejected
            words.append(f"{kept:,} of {found.drafted:,} drafts right")
        plot = bars(rows, f"Speed-up of {mode} mode", mark=1.0)
        figures += figure(mode, "; ".join(words), plot)
    lead = (
        "A skipped layer is not yet saved time: exits and heads cost something, skipped layers are caught up later, "
        "and wrong drafts are run again. The line is full depth."
    )
    return section("saved", "Saved against realised", lead, tag("div", figures, class_="pair"))


def exits_at(manifest: Manifest) -> str:
    """The exits in words."""
    layers = [str(e.layer) for e in manifest.exits]
    return f"exits after {', '.join(layers)}" if layers else "no exits"


def _mode_card(mode: str, found: ModeResult) -> str:
    same = f"{found.equal_tokens:,} of {found.tokens:,} tokens are full depth's"
    words = same if mode == "exact" else f"{found.agreement:.1%} agreement with the full model on its own continuation"
    number = f"{found.speedup:.2f}×"
    return _card(mode if found.speedup >= 1 else f"{mode} slow", number, f"{mode} over full depth", found.note or words)


def _card(kind: str, number: str, label: str, words: str) -> str:
    parts = tag("strong", escape(number)) + tag("span", escape(label)) + tag("small", escape(words))
    return tag("div", parts, class_=f"card {kind}")


def _speed_bar(label: str, kind: str, rate: float, seconds: Sequence[float], ratio: float) -> Bar:
    """A bar with the range of the rounds: their seconds are those of `rate` in the middle one."""
    middle = sorted(seconds)[(len(seconds) - 1) // 2]
    low, high = (rate * middle / s for s in (max(seconds), min(seconds)))
    return Bar(label, f"{rate:.1f} tokens/s · {ratio:.2f}×", rate, kind, low, high)


def _shares(result: ModeResult) -> dict[int, float]:
    total = max(1, sum(result.exit_layers.values()))
    return {depth: n / total for depth, n in result.exit_layers.items()}


def _time_parts(result: ModeResult, segments: Sequence[str]) -> list[Part]:
    exits = sum(v for name, v in result.time.items() if name.startswith("exit_"))
    parts = [Part("embed", result.time.get("embed", 0.0), "embed")]
    for i, name in enumerate(segments):
        shade = 1.0 - 0.65 * i / max(1, len(segments) - 1)
        parts.append(Part(name.replace("_", " "), result.time.get(name, 0.0), "segment", shade))
    parts.append(Part("exits", exits, "gates"))
    parts.append(Part("head", result.time.get("head", 0.0), "head"))
    return [*parts, Part("runtime", result.time.get(RUNTIME, 0.0), "runtime")]


def _same_tokens(found: ModeResult) -> bool:
    return found.equal_tokens == found.tokens


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
