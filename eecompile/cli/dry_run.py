"""What `build --dry-run` prints of the cost model's prediction."""

from eecompile.bench.forecast import Prediction
from eecompile.cli.console import print_table, say


def print_prediction(prediction: Prediction) -> None:
    """The graphs, decoding and memory, in tables."""
    if prediction.basis:
        say(f"predicted, not measured: on {prediction.basis}, {prediction.length} tokens in the cache")
    else:
        say("no speed is predicted: the target stands for devices of different rates")
    print_table("graphs", ["graph", "layers", "weights", "one row", "most rows", "prefill"], [
        [g.graph, g.layers or "", _size(g.weights), _time(g.one_row), _time(g.most_rows), _time(g.prefill)]
        for g in prediction.graphs
    ])  # fmt: skip
    if prediction.forecasts:
        columns = ["mode", "exits", "tokens/s", "speed-up", "depth", "layer-rows", "read", "where"]
        print_table("decoding, a token", columns, [
            [f.mode, ", ".join(map(str, f.exits)) or "-", f"{f.tokens_per_second:.0f}", f"{f.speedup:.2f}x",
             f"{f.mean_depth:.1f}", f"{f.layer_rows:.1f}", _size(f.bytes), f.basis]
            for f in prediction.forecasts
        ])  # fmt: skip
    if prediction.batch:
        columns = ["mode", "exits", "tokens/s of all", "over one alone", "speed-up", "depth", "layer-rows", "read"]
        print_table(f"decoding {prediction.batch[0].slots} sequences side by side, a token", columns, [
            [f.mode, ", ".join(map(str, f.exits)) or "-", f"{f.tokens_per_second:.0f}",
             f"{f.tokens_per_second / alone.tokens_per_second:.2f}x", f"{f.speedup:.2f}x", f"{f.mean_depth:.1f}",
             f"{f.layer_rows:.1f}", _size(f.bytes)]
            for f, alone in zip(prediction.batch, prediction.forecasts, strict=False)
        ])  # fmt: skip
    m = prediction.memory
    verdict = {True: "fits", False: "DOES NOT FIT", None: "the target's memory is not known"}[m.fits]
    parts = f"weights {_size(m.weights)}, caches {_size(m.caches)}, scratch {_size(m.scratch)}"
    of = f" of {_size(m.limit)}" if m.limit else ""
    say(f"memory: {_size(m.total)}{of}, {verdict} ({parts}; the system's own not counted)")


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _time(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3g} ms"
