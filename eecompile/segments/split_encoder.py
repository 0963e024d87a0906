"""Cut an encoder at its exits into embedding, segments, exits with their classifiers, and head."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from eecompile import contract as c
from eecompile.schema import GraphInfo
from eecompile.segments.encoder import EncoderWriter
from eecompile.segments.graph import GraphFolder, GraphWriter
from eecompile.segments.plan import cuts
from eecompile.segments.split import GraphSet, WrittenGraphs
from eecompile.segments.weights import WeightBook
from eecompile.student.encoder_student import EncoderStudent
from eecompile.student.exits import ExitSpec


def write_encoder(
    student: EncoderStudent, root: Path, *, precision: str, progress: Callable[[str], None] = lambda stage: None
) -> WrittenGraphs:
    """Write every graph and its weights under root/segments; call `progress` before each with its name.

    Memory: one weight matrix in its final precision and 16 MiB of its source at a time.
    """
    folder = root / "segments"
    folder.mkdir(parents=True, exist_ok=True)
    book, exits = WeightBook(folder), student.exits.schema.exits
    graphs = _write_graphs(student, GraphFolder(folder, book), precision, progress)
    book.close()
    steps = range(len(graphs.segments))
    schedule = [{"segment": k, "cache": k, "exit": k if k < len(exits) else None} for k in steps]
    return WrittenGraphs(graphs, None, schedule, book)


def _write_graphs(
    student: EncoderStudent, out: GraphFolder, precision: str, progress: Callable[[str], None]
) -> GraphSet:
    e, exits = EncoderWriter(student.spec, student.store, precision), student.exits.schema.exits

    def written(name: str, write: Callable[[GraphWriter], object], layers: int = 0) -> GraphInfo:
        progress(name.replace("_", " "))
        return out.write(name, write, layers)

    def embed(g: GraphWriter) -> None:
        g.output(e.embed(g), c.HIDDEN_OUT, "float32", "N", e.spec.hidden)

    def segment(g: GraphWriter, layers: range) -> None:
        x = g.input(c.HIDDEN, "float32", "N", e.spec.hidden)
        mask = e.inputs(g)
        for layer in layers:
            x = e.layer(g, x, mask, layer)
        g.output(x, c.HIDDEN_OUT, "float32", "N", e.spec.hidden)

    made = written("embed", embed)
    parts = enumerate(cuts(e.spec.layers, [x.layer for x in exits]))
    segments = [written(f"segment_{k}", partial(segment, layers=layers), len(layers)) for k, layers in parts]

    def classifier(name: str, exit_: ExitSpec | None) -> GraphInfo:
        return written(name, partial(e.classify, exits=student.exits, exit_=exit_))

    asked = [classifier(f"exit_{k}", exit_) for k, exit_ in enumerate(exits)]
    return GraphSet(made, segments, asked, classifier("head", None), [])
