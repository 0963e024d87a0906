"""Plots as inline SVG. Text and strokes keep their size at any width: x is in percent, y in pixels.

Colours come from the page's style sheet: `kind` is a class that sets one ("exact", "segment", "runtime", ...).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from eecompile.bench.markup import tag

Format = Callable[[float], str]
LEFT, RIGHT = 9.0, 98.0  # percent of the width that a plot's x axis spans
ROW, BAR = 46, 14  # pixels: a bar with its label, a bar


def text(words: object, /, **attributes: object) -> str:
    """SVG text, escaped."""
    return tag("text", escape(str(words)), **attributes)


@dataclass(frozen=True)
class Bar:
    """One horizontal bar: `label` above it at the left, `note` at the right. low, high: the range of the rounds.
    shade: opacity of its colour."""

    label: str
    note: str
    value: float
    kind: str
    low: float | None = None
    high: float | None = None
    shade: float = 1.0


def bars(rows: Sequence[Bar], title: str, *, mark: float | None = None) -> str:
    """Horizontal bars from zero on one scale; `mark` is a line across all of them."""
    top = 1.02 * max([*(max(b.value, b.high or 0) for b in rows), mark or 0, 1e-12])
    parts = [_bar(b, i * ROW, top) for i, b in enumerate(rows)]
    if mark is not None:
        x = _percent(mark / top)
        ends = ({"y1": i * ROW + 20, "y2": i * ROW + 28 + BAR} for i in range(len(rows)))
        parts.extend(tag("line", class_="mark", x1=x, x2=x, **y) for y in ends)
    return _svg("".join(parts), len(rows) * ROW, title)


@dataclass(frozen=True)
class Part:
    """A part of a stacked bar. shade: opacity of its colour."""

    name: str
    value: float
    kind: str
    shade: float = 1.0


def stacked(rows: Sequence[tuple[str, str, Sequence[Part]]], title: str, show: Format) -> str:
    """Horizontal bars in parts: (label, note, parts) each, on one scale."""
    top = max([sum(p.value for p in parts) for _, _, parts in rows] + [1e-12])
    found = []
    for i, (label, note, parts) in enumerate(rows):
        found.append(_labels(label, note, i * ROW))
        start = 0.0
        for part in parts:
            hover = tag("title", escape(f"{part.name}: {show(part.value)}"))
            box = {
                "x": _percent(start / top),
                "width": _percent(part.value / top),
                "y": i * ROW + 22,
                "height": BAR + 4,
            }
            found.append(tag("rect", hover, class_=f"{part.kind} part", fill_opacity=f"{part.shade:.2f}", **box))
            start += part.value
    return _svg("".join(found), len(rows) * ROW, title)


def columns(groups: Sequence[str], series: Sequence[tuple[str, str, Sequence[float]]], title: str, show: Format) -> str:
    """Vertical columns: for each group one of every series (name, kind, values), its value above it."""
    height, base = 210, 180
    top = max([v for _, _, values in series for v in values] + [1e-12])
    wide = 100 / max(1, len(groups))
    thick = min(0.8 * wide / max(1, len(series)), 9.0)
    parts = [tag("line", class_="axis", x1="0%", x2="100%", y1=base, y2=base)]
    for g, name in enumerate(groups):
        middle = (g + 0.5) * wide
        parts.append(text(name, class_="tick", x=f"{middle:.2f}%", y=base + 20, text_anchor="middle"))
        for s, (series_name, kind, values) in enumerate(series):
            x = middle + (s - len(series) / 2) * thick
            tall = values[g] / top * (base - 26)
            hover = tag("title", escape(f"{series_name}, {name}: {show(values[g])}"))
            box = {"x": f"{x + 0.06 * thick:.2f}%", "width": f"{0.88 * thick:.2f}%", "y": f"{base - tall:.1f}"}
            parts.append(tag("rect", hover, class_=kind, height=f"{max(tall, 0):.1f}", rx=3, **box))
            if values[g] > 0:
                centre = {"x": f"{x + thick / 2:.2f}%", "y": f"{base - tall - 6:.1f}", "text_anchor": "middle"}
                parts.append(text(show(values[g]), class_="value", **centre))
    return _svg("".join(parts), height, title)


def descent(depths: Sequence[tuple[int, float]], layers: int, kind: str, title: str) -> str:
    """How many tokens are still running after each layer: a filled staircase over depth, x layers, y share of tokens.

    depths: (layers run, share of tokens that stop there). The empty part is work that no token waited for.
    """
    height, head, base = 190, 22, 160
    share, x, path, labels = 1.0, 0.0, "M0,0", []
    for depth, leaving in depths:
        if depth >= layers:
            continue
        y, x = (1 - share) * 1000, depth / layers * 1000
        path += f"L{x:.1f},{y:.1f}"
        share -= leaving
        path += f"L{x:.1f},{(1 - share) * 1000:.1f}"
        labels.append(text(f"−{leaving:.0%}", class_="value", x=_percent(depth / layers), y=head - 7))
        labels.append(text(depth, class_="tick", x=_percent(depth / layers), y=base + 18, text_anchor="middle"))
    path += f"L1000,{(1 - share) * 1000:.1f}L1000,1000L0,1000Z"
    frame = {"x": "0", "y": head, "width": "100%", "height": base - head, "preserveAspectRatio": "none"}
    area = tag("svg", tag("path", d=path, class_=f"{kind} area"), viewBox="0 0 1000 1000", **frame)
    back = tag("rect", class_="track", x="0", y=head, width="100%", height=base - head)
    ends = text("0", class_="tick", x="0", y=base + 18) + text(
        f"{layers} layers", class_="tick", x="100%", y=base + 18, text_anchor="end"
    )
    return _svg(back + area + "".join(labels) + ends, height, title)


@dataclass(frozen=True)
class Line:
    """A curve through points (x, y); `points` drawn as dots too where `dots`."""

    name: str
    kind: str
    points: Sequence[tuple[float, float]]
    shade: float = 1.0
    dots: bool = True


@dataclass(frozen=True)
class Mark:
    """A labelled point, its label above or below it."""

    label: str
    x: float
    y: float
    kind: str
    below: bool = False


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high` with its ticks and what it measures."""

    low: float
    high: float
    ticks: Sequence[float]
    show: Format
    label: str

    def place(self, value: float) -> float:
        """`value` as a share of the axis."""
        return (value - self.low) / (self.high - self.low)


def axis(values: Sequence[float], show: Format, label: str, *, low: float | None = None) -> Axis:
    """A linear axis over `values` with round ticks, from `low` where given."""
    least = min(values, default=0.0) if low is None else low
    most = max([*values, least + 1e-9])
    step = _round_step((most - least) / 4)
    start, end = math.floor(least / step) * step, math.ceil(most / step - 1e-9) * step
    ticks = [start + i * step for i in range(round((end - start) / step) + 1)]
    return Axis(start, end, ticks, show, label)


def curves(
    lines: Sequence[Line], marks: Sequence[Mark], x: Axis, y: Axis, title: str, *,
    limit: tuple[float, str] | None = None, height: int = 280,
) -> str:  # fmt: skip
    """Curves and labelled points over two axes; `limit` is a labelled level that y should stay under."""
    head, base = 30, height - 46

    def at(value: float) -> str:
        return f"{LEFT + x.place(value) * (RIGHT - LEFT):.2f}%"

    def up(value: float) -> str:
        return f"{base - y.place(value) * (base - head):.1f}"

    parts = [text(y.label, class_="label", x="0", y=12)]
    parts.append(text(x.label, class_="label", x=f"{RIGHT}%", y=height - 6, text_anchor="end"))
    for tick in y.ticks:
        parts.append(tag("line", class_="grid", x1=f"{LEFT}%", x2=f"{RIGHT}%", y1=up(tick), y2=up(tick)))
        parts.append(text(y.show(tick), class_="tick", x=f"{LEFT}%", dx=-8, dy=4, y=up(tick), text_anchor="end"))
    for tick in x.ticks:
        parts.append(text(x.show(tick), class_="tick", x=at(tick), y=base + 18, text_anchor="middle"))
    if limit is not None and limit[0] <= y.high:
        level = up(limit[0])
        parts.append(tag("line", class_="limit", x1=f"{LEFT}%", x2=f"{RIGHT}%", y1=level, y2=level))
        parts.append(text(limit[1], class_="limit-label", x=f"{RIGHT}%", dy=-6, y=level, text_anchor="end"))
    frame = {"x": f"{LEFT}%", "y": head, "width": f"{RIGHT - LEFT}%", "height": base - head}
    drawn = "".join(_path(line, x, y) for line in lines)
    parts.append(tag("svg", drawn, viewBox="0 0 1000 1000", preserveAspectRatio="none", **frame))
    for line in lines:
        for px, py in line.points if line.dots else ():
            hover = tag("title", escape(f"{line.name}: {x.show(px)}, {y.show(py)}"))
            dot = {"cx": at(px), "cy": up(py), "fill_opacity": f"{line.shade:.2f}"}
            parts.append(tag("circle", hover, class_=line.kind, r=3, **dot))
    for mark in marks:
        right = x.place(mark.x) > 0.6
        side = {"text_anchor": "end", "dx": -10} if right else {"dx": 10}
        parts.append(tag("circle", class_=f"{mark.kind} point", cx=at(mark.x), cy=up(mark.y), r=6))
        parts.append(text(mark.label, class_="value", x=at(mark.x), y=up(mark.y), dy=18 if mark.below else -8, **side))
    return _svg("".join(parts), height, title)


def _bar(b: Bar, y: int, top: float) -> str:
    track = tag("rect", class_="track", x="0", y=y + 24, width="100%", height=BAR, rx=BAR / 2)
    box = {"x": "0", "y": y + 24, "width": _percent(b.value / top), "height": BAR, "rx": BAR / 2}
    fill = tag("rect", class_=b.kind, fill_opacity=f"{b.shade:.2f}", **box)
    whisker = ""
    if b.low is not None and b.high is not None:
        ends = {
            "x1": _percent(b.low / top),
            "x2": _percent(b.high / top),
            "y1": y + 24 + BAR / 2,
            "y2": y + 24 + BAR / 2,
        }
        whisker = tag("line", class_="whisker", **ends)
    return _labels(b.label, b.note, y) + track + fill + whisker


def _labels(label: str, note: str, y: int) -> str:
    right = text(note, class_="value", x="100%", y=y + 15, text_anchor="end")
    return text(label, class_="name", x="0", y=y + 15) + right


def _path(line: Line, x: Axis, y: Axis) -> str:
    points = [f"{x.place(px) * 1000:.1f},{(1 - y.place(py)) * 1000:.1f}" for px, py in line.points]
    return tag("polyline", points=" ".join(points), class_=f"{line.kind} line", stroke_opacity=f"{line.shade:.2f}")


def _svg(content: str, height: int, title: str) -> str:
    return tag("svg", content, width="100%", height=height, role="img", aria_label=title)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _round_step(step: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(step, 1e-12)))
    return next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= step * (1 - 1e-9))
