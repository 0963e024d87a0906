"""The report: a whole page, nothing outside it, nothing hostile in it, and the measurements still inside."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from measured import EXITS, mode, open_exits, result

from eecompile import contract as c
from eecompile.bench.markup import tag
from eecompile.bench.plots import Bar, Line, Mark, Part, axis, bars, columns, curves, descent, stacked
from eecompile.bench.report import read_bench, render_report, write_report
from eecompile.bench.report_engines import engines_section
from eecompile.bundle.read import BundleFiles, read_bundle
from eecompile.bundle.write import write_overlay
from eecompile.engines.records import EngineFile, EngineOptions, EngineRecord
from eecompile.runtime import Bundle

VOID = {"meta"}
HOSTILE = "</script></style><script>alert('x')</script><img src=x onerror=alert(1)>\"' onload=alert(2) &amp;"


class Page(HTMLParser):
    """Checks that tags close in order, and keeps what a browser would act on."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"an attribute twice in {tag}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"nothing to close with </{tag}>"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Calibrated and profiled."""
    root = tmp_path_factory.mktemp("report")
    opened = open_exits(root / "bundle", tiny.checkpoint(root / "checkpoint"), 0.2)
    passes = [
        {"graph": graph, "rows": rows, "length": length, "seconds": 0.001 * rows}
        for length in (64, 512) for rows in (1, 2, 9, 128) for graph in ("segment_0", "segment_1", "head")
    ]  # fmt: skip
    fields = {"device": "here", "threads": 2, "passes": passes}
    write_overlay(opened.files.path, "overlays/profile-cpu.json", fields)
    return Bundle.open(opened.files.path, integrity="size")


def check_contained(html: str) -> Page:
    """Nothing in the page may reach outside it or run."""
    page = Page(html)
    assert html.startswith("<!doctype html>")
    for name, attributes in page.tags:
        assert name not in ("img", "link", "iframe", "object", "base", "form", "a", "use", "image")
        assert not any(key.startswith("on") or key in ("src", "href", "srcset", "action") for key in attributes)
    scripts = [attributes for name, attributes in page.tags if name == "script"]
    assert all(s == {"type": "application/json", "id": "bench"} for s in scripts)
    assert not re.search(r"https?:|//|url\(|@import|expression\(", html)
    assert "default-src 'none'" in html.replace("&#x27;", "'")
    return page


def test_everything_is_there(bundle: Bundle) -> None:
    page = check_contained(render_report(bundle.files, result(bundle.manifest.digest)))
    ids = [attributes["id"] for name, attributes in page.tags if name == "section"]
    assert ids == ["speed", "exits", "quality", "time", "saved", "policy", "profile", "provenance"]
    assert sum(name == "svg" for name, _ in page.tags) >= 10
    for said in (
        "0.90×", "1.25×", "97.0%", "not installed", "genai", "max_prob > 0.2", "chosen",
        "allowed: 2.0%", "35 of 40 drafts right", "4.5 rows through layers", "10.0% outside the engines",
        bundle.manifest.digest, bundle.files.calibrations[0].data, "learn-then-test on 9 documents", "a processor",
        "64 tokens in the cache", "512 tokens in the cache", "123 MB", "1.02×",
    ):  # fmt: skip
        assert said in page.text, said


def test_light_and_dark(bundle: Bundle) -> None:
    html = render_report(bundle.files, None)
    assert "prefers-color-scheme: dark" in html
    light, dark = html.split("prefers-color-scheme: dark")[0], html.split("prefers-color-scheme: dark")[1]
    used = set(re.findall(r"var\((--[a-z]+)", html)) - {"--tone"}
    for name in used:
        assert f"{name}:" in light, name
        assert f"{name}:" in dark, name


def test_without_measurements(bundle: Bundle) -> None:
    page = check_contained(render_report(bundle.files, None))
    assert "Not measured yet" in page.text
    ids = [attributes["id"] for name, attributes in page.tags if name == "section"]
    assert ids == ["quality", "policy", "profile", "provenance"]


def test_a_bare_bundle(shelf: Any) -> None:
    files = shelf.bundle().files
    page = check_contained(render_report(files, None))
    for said in ("The bundle has no exits.", "Not profiled", "Neither calibrated nor measured"):
        assert said in page.text


def test_refused_and_closed_modes(shelf: Any) -> None:
    files = shelf.bundle(at=EXITS).files
    closed = "no exit is open in the policy: this is full depth"
    modes = {"full": mode(), "exact": mode(note=closed, exit_layers={4: 100}, drafted=0, rejected=0, mean_depth=4)}
    bench = result(files.manifest.digest, modes=modes, refused={"confident": "nobody calibrated"}, uncut=None, peers={})
    page = check_contained(render_report(files, bench.model_copy(update={"chain_over_uncut": None})))
    assert "nobody calibrated" in page.text
    assert closed in page.text
    assert "No exit is open" in page.text
    assert "never" in page.text


def hostile(files: BundleFiles) -> BundleFiles:
    """The bundle with hostile words wherever it may hold words."""
    manifest = files.manifest.model_copy(
        update={"provenance": {"checkpoint": HOSTILE, HOSTILE[:60]: HOSTILE}, "target": HOSTILE}
    )
    exits = [e.model_copy(update={"reason": HOSTILE}) for e in files.policy.exits]
    policy = files.policy.model_copy(update={"exits": exits})
    profiles = tuple(p.model_copy(update={"device": HOSTILE}) for p in files.profiles)
    calibrations = tuple(k.model_copy(update={"loss": HOSTILE}) for k in files.calibrations)
    return dataclasses.replace(files, manifest=manifest, policy=policy, profiles=profiles, calibrations=calibrations)


def test_hostile_words_stay_words(bundle: Bundle) -> None:
    bench = result(bundle.manifest.digest)
    machine = bench.machine.model_copy(update={"device": HOSTILE})
    peer = bench.peers["genai"].model_copy(update={"version": HOSTILE, "note": HOSTILE, "precision": HOSTILE})
    bench = bench.model_copy(
        update={
            "machine": machine, "peers": {HOSTILE: peer}, "skipped": {HOSTILE: HOSTILE}, "refused": {HOSTILE: HOSTILE},
            "memory_includes": HOSTILE, "modes": {**bench.modes, "exact": mode(note=HOSTILE)},
        }
    )  # fmt: skip
    html = render_report(hostile(bundle.files), bench)
    page = check_contained(html)
    assert page.text.count("<script>alert('x')</script>") >= 10
    assert "<img" not in html
    assert sum(name == "script" for name, _ in page.tags) == 1


def test_the_measurements_stay_in_the_page(bundle: Bundle, tmp_path: Path) -> None:
    bench = result(bundle.manifest.digest, memory_includes=HOSTILE)
    page = write_report(bundle.files.path, bench)
    assert page == bundle.files.path / c.REPORT
    assert read_bench(page) == bench
    before = page.read_bytes()
    assert write_report(bundle.files.path, None) == page  # drawn again from what is inside
    assert page.read_bytes() == before
    read_bundle(bundle.files.path)  # the report does not disturb the bundle
    assert [p.name for p in page.parent.iterdir() if "tmp" in p.name] == []
    elsewhere = tmp_path / "other.html"
    assert write_report(bundle.files.path, bench, elsewhere) == elsewhere
    assert [p.name for p in tmp_path.iterdir()] == ["other.html"]
    page.unlink()


def test_measurements_of_another_bundle_are_left_out(bundle: Bundle, tmp_path: Path) -> None:
    page = write_report(bundle.files.path, result("c" * 64), tmp_path / "r.html")
    assert read_bench(page) is None
    assert "Not measured yet" in page.read_text()


@pytest.mark.parametrize(
    "content", ["", "<p>mine</p>", '<script type="application/json" id="bench">{}</script>', b"\xff\xfe"]
)
def test_a_page_without_measurements(tmp_path: Path, content: str | bytes) -> None:
    page = tmp_path / "r.html"
    page.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_bench(page) is None
    assert read_bench(tmp_path / "absent.html") is None


numbers = st.floats(0, 1e9, allow_subnormal=False)


@given(st.lists(numbers, min_size=1, max_size=9))
def test_an_axis_holds_its_values_and_has_few_round_ticks(values: list[float]) -> None:
    found = axis(values, str, "x", low=0.0)
    assert found.low <= 0
    assert found.high >= max(values) * (1 - 1e-6)
    assert 2 <= len(found.ticks) <= 7
    assert all(-1e-9 <= found.place(v) <= 1 + 1e-6 for v in values)


@given(st.lists(numbers, min_size=1, max_size=6), st.floats(0, 1))
def test_plots_are_well_formed_and_inside_their_width(values: list[float], share: float) -> None:
    rows = [Bar(HOSTILE, HOSTILE, v, "exact", v / 2, v * 2) for v in values]
    x = axis(values, lambda v: f"{v:g}", "x", low=0.0)
    line = Line(HOSTILE, "exact", [(v, v) for v in values])
    plots = [
        bars(rows, HOSTILE, mark=values[0]),
        stacked([(HOSTILE, "n", [Part(HOSTILE, v, "head") for v in values])], "t", str),
        columns([HOSTILE] * len(values), [(HOSTILE, "exact", values)], "t", lambda v: f"{v:g}"),
        descent([(1, share), (3, 1 - share)], 4, "exact", "t"),
        curves([line], [Mark(HOSTILE, values[0], values[0], "chosen")], x, x, "t", limit=(values[0], HOSTILE)),
    ]
    for plot in plots:
        page = Page(plot)
        assert page.tags[0][0] == "svg"
        for name, attributes in page.tags:
            for key in ("x", "x1", "x2", "cx", "width"):
                value = attributes.get(key) or "0"
                if value.endswith("%"):
                    assert -0.01 <= float(value[:-1]) <= 100.01, (name, key, value)


def test_attributes_are_escaped() -> None:
    assert tag("p", "x", class_='"<', data_y=1) == '<p class="&quot;&lt;" data-y="1">x</p>'


def test_engines_are_shown_by_target_and_what_is_missing_is_said() -> None:
    head = EngineFile(
        file="head.plan", onnx="9" * 64, bytes=58_600_000, sha256="8" * 64, profiles=["decode"], seconds=1.4,
        peak=4 << 20, layers={"PLUGIN_V3": 1, "ELEMENTWISE": 6},
    )  # fmt: skip
    record = EngineRecord(
        core="c" * 64, target="mine", backend="tensorrt", sm=[87], tensorrt="10.16.2", cuda="13.2", plugin=None,
        options=EngineOptions(compute="float16", stripped=True), engines={HOSTILE: head},
    )  # fmt: skip
    page = Page(engines_section([record], None))
    assert all(word in page.text for word in (HOSTILE, "SM 87", "stripped", "58.6", "plugin 1, others 6"))
    assert not {name for name, _ in page.tags} & {"script", "img"}
    assert "built on the device" not in page.text
    assert "built on the device" in Page(engines_section([record], "jetson-orin")).text
    assert "built on the device" not in Page(engines_section([record], "mine")).text
