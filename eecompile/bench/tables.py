"""A bench's result as tables for a terminal."""

from typing import Any, TypeAlias

from eecompile.bench.results import BenchResult

Table: TypeAlias = tuple[str, list[str], list[list[Any]]]  # title, columns, rows


def bench_tables(result: BenchResult) -> list[Table]:
    """The modes; sequences side by side, K/V rules, the uncut graph and peers, where measured; each graph's time."""
    tables = (_modes(result), _batch(result), _rules(result), _beside(result), _others(result), _graphs(result))
    return [table for table in tables if table[2]]


def _modes(result: BenchResult) -> Table:
    columns = [
        "mode", "tokens/s", "speed-up", "ideal", "agreement", "same tokens", "mean depth", "layer-rows", "drafts right",
        "overhead", "note",
    ]  # fmt: skip
    rows: list[list[Any]] = []
    for mode, found in result.modes.items():
        drafts = f"{found.drafted - found.rejected}/{found.drafted}" if found.drafted else "-"
        rows.append([
            mode, f"{found.tokens_per_second:.1f}", f"{found.speedup:.2f}x", f"{found.ideal_speedup:.2f}x",
            f"{found.agreement:.2%}", f"{found.equal_tokens}/{found.tokens}", f"{found.mean_depth:.1f}",
            f"{found.layer_rows:.1f}", drafts, f"{found.overhead:.1%}", found.note,
        ])  # fmt: skip
    rows += [[mode, *["-"] * (len(columns) - 2), f"refused: {why}"] for mode, why in result.refused.items()]
    run = f"{result.prompts} prompts x {result.max_new_tokens} tokens, {result.rounds} rounds"
    title = f"{result.precision}, {result.machine.threads} threads, {run}, peak {result.peak_memory_mb:,.0f} MB"
    return title, columns, rows


def _batch(result: BenchResult) -> Table:
    columns = [
        "mode", "tokens/s", "over alone", "speed-up", "ideal", "speed-up alone", "same as alone", "mean depth",
        "passes/token", "alone", "padding", "overhead",
    ]  # fmt: skip
    found = result.batch
    rows: list[list[Any]] = [
        [
            mode, f"{m.tokens_per_second:.1f}", f"{m.ratio:.2f}x", f"{m.speedup:.2f}x", f"{m.ideal_speedup:.2f}x",
            f"{m.speedup_alone:.2f}x", f"{m.equal_tokens}/{m.tokens}", f"{m.mean_depth:.1f}",
            f"{m.passes_per_token:.2f}", f"{m.passes_per_token_alone:.2f}", f"{m.padding:.1%}", f"{m.overhead:.1%}",
        ]
        for mode, m in (found.modes if found else {}).items()
    ]  # fmt: skip
    return f"{found.slots if found else 0} sequences side by side", columns, rows


def _rules(result: BenchResult) -> Table:
    found = result.kv
    rows: list[list[Any]] = [
        [
            p.rule, p.pending, f"{p.tokens_per_second:.1f}", f"{p.agreement:.2%}", f"{p.perplexity:.3f}", p.tokens,
        ]
        for p in (found.points if found else ())
    ]  # fmt: skip
    title = f"rules for skipped layers, tokens leaving after {found.layer if found else 0} layers"
    return title, ["rule", "pending", "tokens/s", "agreement", "perplexity", "tokens"], rows


def _beside(result: BenchResult) -> Table:
    rows: list[list[Any]] = [
        [mode, f"{b.tokens_per_second:.1f}", f"{b.speed_ratio:.2f}x", f"{b.speedup:.2f}x", f"{b.agreement:.2%}"]
        for mode, b in result.beside.items()
    ]
    return "the other bundle", ["mode", "tokens/s", "over this one's", "speed-up", "agreement"], rows


def _others(result: BenchResult) -> Table:
    rows: list[list[Any]] = []
    if result.uncut is not None:
        full = result.modes["full"]
        same = f"{result.uncut.equal_tokens}/{full.tokens} tokens"
        ratio = full.tokens_per_second / result.uncut.tokens_per_second
        rate = f"{result.uncut.tokens_per_second:.1f}"
        rows.append(
            ["uncut", rate, f"{ratio:.2f}x", same, result.precision, f"chain / uncut = {1 / ratio:.3f} in time"]
        )
    for name, peer in result.peers.items():
        same = f"{peer.equal_prompts}/{result.prompts} prompts"
        rate = f"{peer.tokens_per_second:.1f}"
        rows.append(
            [name, rate, f"{peer.speed_ratio:.2f}x", same, peer.precision, f"{peer.version} {peer.note}".strip()]
        )
    rows += [[name, "-", "-", "-", "-", f"skipped: {why}"] for name, why in result.skipped.items()]
    return "in the same rounds", ["what", "tokens/s", "full over it", "same", "precision", "note"], rows


def _graphs(result: BenchResult) -> Table:
    """Times also as a number of the model's layers: what an exit has to save before it gains anything."""
    segments = sum(t.seconds for t in result.graphs if t.graph.startswith("segment_") and t.rows == 1)
    layer = segments / result.layers
    rows = [
        [t.graph, t.rows, f"{1000 * t.seconds:.3f}", f"{t.seconds / layer:.2f}" if layer else "-", t.passes]
        for t in result.graphs
    ]
    return "a token's pass of each graph", ["graph", "rows", "median ms", "in layers", "passes"], rows
