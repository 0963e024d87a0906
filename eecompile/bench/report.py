"""`report`: one HTML page about a bundle, with nothing outside it: style, plots and the measurements themselves.

The measurements are kept inside the page as JSON, so that the page can be drawn again without measuring again.
"""

import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from pydantic import ValidationError

from eecompile import contract as c
from eecompile.bench.classifier import ClassifierBench
from eecompile.bench.markup import tag
from eecompile.bench.report_bundle import policy_section, profile_section, provenance_section
from eecompile.bench.report_classifier import classifier_section, classifier_verdict
from eecompile.bench.report_engines import engines_section
from eecompile.bench.report_measured import (
    exit_section,
    exits_at,
    headline,
    quality_section,
    saved_section,
    speed_section,
    time_section,
)
from eecompile.bench.results import BenchResult
from eecompile.bundle.disk import write_atomically
from eecompile.bundle.ranges import matching_calibrations
from eecompile.bundle.read import BundleFiles, read_bundle
from eecompile.engines.records import all_records

STYLE = Path(__file__).with_name("report.css")
_EMBEDDED = re.compile(r'<script type="application/json" id="bench">(.*?)</script>', re.DOTALL)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # the page asks for nothing, and a browser makes sure


def write_report(
    bundle: Path, bench: BenchResult | None, out: Path | None = None, *, classifier: ClassifierBench | None = None
) -> Path:
    """Write the report of the bundle at `bundle` and return its path, by default report.html in the bundle.

    bench: the measurements; None takes those inside the page that is already there if they are of this bundle, and
    otherwise leaves their sections out. classifier: the measurements of a bundle that classifies.
    Raises IntegrityError, and EECompileError where the page cannot be written.
    """
    files = read_bundle(bundle, integrity="size")
    page = files.path / c.REPORT if out is None else out
    if bench is None:
        bench = read_bench(page)
    if bench is not None and bench.core != files.manifest.digest:
        bench = None
    # a stray temporary file is taken for litter only among the overlays; beside any other page it harms nobody
    scratch = files.path / Path(c.POLICY).parent if out is None else page.parent
    write_atomically(page, render_report(files, bench, classifier).encode(), scratch)
    return page


def read_bench(page: Path) -> BenchResult | None:
    """The measurements inside a report, or None where there is no report or it has none that can be read."""
    try:
        found = _EMBEDDED.search(page.read_text(encoding="utf-8"))
        return None if found is None else BenchResult.model_validate_json(found[1])
    except (OSError, UnicodeDecodeError, ValidationError):
        return None


def render_report(files: BundleFiles, bench: BenchResult | None, classifier: ClassifierBench | None = None) -> str:
    """The page as HTML."""
    m = files.manifest
    name = str(m.provenance.get("checkpoint") or m.model.family)
    calibrations = matching_calibrations(m, files.policy, files.calibrations, files.policy.kv)
    records, waiting = all_records(files.path), None if m.device is None else m.device.target
    measured = [] if bench is None else [speed_section(bench), exit_section(bench)]
    measured += [] if classifier is None else [classifier_section(classifier)]
    after = [] if bench is None else [time_section(bench), saved_section(bench)]
    sections = [
        *measured,
        quality_section(bench, calibrations, m.model.layers),
        *after,
        policy_section(files),
        profile_section(files),
        *([engines_section(records, waiting)] if records or waiting else []),
        provenance_section(files, bench),
    ]
    top = _masthead(files, name, bench, _verdict(bench) if classifier is None else classifier_verdict(classifier))
    return _page(f"{name} — eecompile report", [top, *sections], bench)


def _masthead(files: BundleFiles, name: str, bench: BenchResult | None, verdict: str) -> str:
    m = files.manifest
    chips = [
        m.model.family, f"{_rounded(m.model.parameters)} parameters", f"{m.model.layers} layers", exits_at(m),
        m.precision, f"target {m.target}",
    ]  # fmt: skip
    row = tag("ul", "".join(tag("li", escape(chip)) for chip in chips), class_="chips")
    said = tag("p", escape(verdict), class_="verdict")
    cards = "" if bench is None else headline(bench)
    return tag("header", tag("p", "eecompile report", class_="brand") + tag("h1", escape(name)) + row + said + cards)


def _rounded(number: int) -> str:
    unit, size = next((pair for pair in (("B", 1e9), ("M", 1e6), ("k", 1e3)) if number >= pair[1]), ("", 1.0))
    return f"{number / size:.3g} {unit}".strip()


def _verdict(bench: BenchResult | None) -> str:
    """The report in a sentence or two."""
    if bench is None:
        return "Not measured yet: `eecompile report BUNDLE` measures it."
    words = []
    exact, confident = bench.modes.get("exact"), bench.modes.get("confident")
    if exact is not None and not exact.note:
        same = (
            "every token the full model's" if exact.equal_tokens == exact.tokens else "NOT every token the full model's"
        )
        words.append(f"Exact mode decodes at {exact.speedup:.2f} times the speed of full depth, {same}.")
    if confident is not None and not confident.note:
        words.append(
            f"Confident mode decodes at {confident.speedup:.2f} times its speed and agrees with the full model on "
            f"{confident.agreement:.1%} of tokens."
        )
    return " ".join(words) or "No exit is open in this bundle's policy: every mode runs at full depth."


def _page(title: str, blocks: Sequence[str], bench: BenchResult | None) -> str:
    head = [
        tag("meta", charset="utf-8").removesuffix("</meta>"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1").removesuffix("</meta>"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY).removesuffix("</meta>"),
        tag("title", escape(title)),
        tag("style", STYLE.read_text(encoding="utf-8")),
    ]
    body = tag("main", "\n".join(blocks)) + ("" if bench is None else _embedded(bench))
    return f'<!doctype html>\n<html lang="en">\n<head>{"".join(head)}</head>\n<body>\n{body}\n</body>\n</html>\n'


def _embedded(bench: BenchResult) -> str:
    """The measurements as JSON that no parser can mistake for markup."""
    data = json.dumps(bench.model_dump(mode="json"), allow_nan=False)
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    return f'\n<script type="application/json" id="bench">{data}</script>'
