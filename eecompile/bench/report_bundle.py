"""The report's sections on what the bundle says of itself: policy, profile, provenance."""

from collections.abc import Mapping
from html import escape

from eecompile.bench.markup import figure, legend, section, table, tag
from eecompile.bench.plots import Axis, Line, axis, curves
from eecompile.bench.results import BenchResult
from eecompile.bundle.manifest import Calibration, Profile
from eecompile.bundle.read import BundleFiles
from eecompile.schema import Thresholds


def policy_section(files: BundleFiles) -> str:
    """Thresholds of every exit, which are closed, and why."""
    policy, rows = files.policy, []
    for info, chosen in zip(files.manifest.exits, policy.exits, strict=True):
        rows.append([
            str(info.layer), info.adapter, " and ".join(info.gates), _thresholds(chosen.confident),
            _thresholds(chosen.draft), chosen.reason,
        ])  # fmt: skip
    lead = (
        "An exit fires when every gate is bolder than its threshold. Confident mode loses what was calibrated at most."
    )
    if policy.minimum_depth:
        lead += f" Every token runs at least {policy.minimum_depth} layers."
    if policy.budget is not None:
        lead += f" A request may spend {policy.budget:,} layer-rows."
    body = table(["after layer", "adapter", "gates", "confident", "drafts of exact", "why"], rows, closed="never")
    return section("policy", "Policy", lead, body if rows else tag("p", "The bundle has no exits."))


def profile_section(files: BundleFiles) -> str:
    """Seconds of a pass by rows, for every measured profile and cache length."""
    figures = "".join(_profile_figures(p, files.manifest.pending_cap + 1) for p in files.profiles)
    lead = (
        "Milliseconds of one pass by its rows: the flatter, the cheaper it is to let tokens wait and catch up together."
    )
    if not files.profiles:
        lead = "Not profiled on this device yet: `eecompile profile BUNDLE`."
    return section("profile", "Profile", lead, figures)


def provenance_section(files: BundleFiles, bench: BenchResult | None) -> str:
    """What this was made from, by what, and how to tell that it is still the same."""
    m = files.manifest
    facts = {
        "core": m.digest, "policy": files.policy.digest, "format": f"{m.format} {m.version}",
        "built by": f"eecompile {m.eecompile}", "target": m.target, "precision": m.precision,
        "context": f"{m.model.context:,} tokens", "pending cap": str(m.pending_cap), "K/V rules": ", ".join(m.kv_rules),
        **{f"student: {key}": str(value) for key, value in m.provenance.items()},
    }  # fmt: skip
    facts |= {} if bench is None else _measured_by(bench)
    for i, calibration in enumerate(files.calibrations):
        facts |= {f"calibration {i + 1}": _calibration(calibration), f"calibration {i + 1} data": calibration.data}
    for profile in files.profiles:
        facts[f"profile of {profile.device}"] = f"{profile.threads} threads, {len(profile.passes)} passes"
    sizes = [
        [name, f"{info.bytes:,}", info.sha256] for name, info in sorted(m.files.items(), key=lambda f: -f[1].bytes)
    ]
    total = sum(info.bytes for info in m.files.values())
    summary = tag("summary", f"{len(sizes)} files, {total / 1e6:,.1f} MB")
    body = _facts(facts) + tag("details", summary + table(["file", "bytes", "SHA-256"], sizes))
    lead = "Digests are SHA-256. Overlays name the core that they belong to; the core never changes."
    return section("provenance", "Provenance", lead, body)


def _measured_by(bench: BenchResult) -> dict[str, str]:
    at = bench.machine
    return {
        "measured by": f"eecompile {bench.eecompile}, ONNX Runtime {at.onnxruntime}, Python {at.python}",
        "measured on": f"{at.device}, {at.processors} processors, {at.threads} threads, {at.system}",
        **{f"peer: {k}": f"{p.version}, {p.threads} threads, {p.note or p.precision}" for k, p in bench.peers.items()},
    }


def _facts(facts: Mapping[str, str]) -> str:
    return tag("dl", "".join(tag("dt", escape(k)) + tag("dd", escape(v)) for k, v in facts.items()))


def _thresholds(thresholds: Thresholds | None) -> str:
    if thresholds is None or "never" in thresholds:
        return "never"
    signs = {"entropy": "<"}
    return ", ".join("always" if k == "fixed" else f"{k} {signs.get(k, '>')} {v:.4g}" for k, v in thresholds.items())


def _calibration(found: Calibration) -> str:
    point = None if found.chosen is None else found.path[found.chosen]
    chosen = "no point passed" if point is None else f"measured risk {point.risk:.2%}"
    if point is not None and point.p_value is not None:
        chosen += f", p = {point.p_value:.2g}"
    splits = ", ".join(f"{n:,} to {name}" for name, n in found.splits.items())
    return (
        f"{found.method} on {found.documents:,} documents{f' ({splits})' if splits else ''}, {found.tokens:,} tokens; "
        f"loss {found.loss}; {found.promise}; {chosen}"
    )


def _profile_figures(profile: Profile, most: int) -> str:
    """One plot for each cache length: segments in shades, and the head."""
    passes = [p for p in profile.passes if p.rows <= most]
    head = sorted((p.rows, 1000 * p.seconds) for p in passes if p.graph == "head")
    names = sorted({p.graph for p in passes if p.graph.startswith("segment_")}, key=lambda n: int(n.rsplit("_")[-1]))
    y = axis([1000 * p.seconds for p in passes], lambda v: f"{v:g}", "ms a pass", low=0.0)
    rows = sorted({p.rows for p in passes})
    x = Axis(0.0, max(rows, default=1), rows, lambda v: f"{v:g}", "rows in the pass")
    figures = ""
    lines: list[Line] = []
    for length in sorted({p.length for p in passes if p.graph in names}):
        lines = []
        for i, name in enumerate(names):
            points = sorted((p.rows, 1000 * p.seconds) for p in passes if (p.graph, p.length) == (name, length))
            lines.append(Line(name.replace("_", " "), "segment", points, 1.0 - 0.65 * i / max(1, len(names) - 1)))
        lines.append(Line("head", "head", head))
        words = f"{length:,} tokens in the cache"
        figures += figure(profile.device, words, curves(lines, [], x, y, words, height=240))
    return tag("div", figures, class_="pair") + legend([(line.name, line.kind, line.shade) for line in lines])
