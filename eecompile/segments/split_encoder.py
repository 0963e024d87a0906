"""Cut an encoder at its exits into embedding, segments, exits with their classifiers, and head."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from eecompile import contract as c
from eecompile.schema import GraphInfo
from eecompile.segments.encoder import EncoderWriter
from eecompile.segments.graph import GraphWriter
from eecompile.segments.plan import cuts
from eecompile.segments.split import WrittenGraphs
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
    e = EncoderWriter(student.spec, student.store, precision)

    def written(name: str, write: Callable[[GraphWriter], int]) -> GraphInfo:
        progress(name.replace("_", " "))
        g = GraphWriter(name, book)
        layers = write(g)
        return g.save(folder / f"{name}.onnx", layers=layers)

    def embed(g: GraphWriter) -> int:
        g.output(e.embed(g), c.HIDDEN_OUT, "float32", "N", e.spec.hidden)
        return 0

    def segment(g: GraphWriter, layers: range) -> int:
        x = g.input(c.HIDDEN, "float32", "N", e.spec.hidden)
        mask = e.inputs(g)
        for layer in layers:
            x = e.layer(g, x, mask, layer)
        g.output(x, c.HIDDEN_OUT, "float32", "N", e.spec.hidden)
        return len(layers)

    def classifier(g: GraphWriter, exit_: ExitSpec | None) -> int:
        e.classify(g, student.exits, exit_)
        return 0

    made = written("embed", embed)
    parts = enumerate(cuts(e.spec.layers, [x.layer for x in exits]))
    segments = [written(f"segment_{k}", partial(segment, layers=layers)) for k, layers in parts]
    asked = [written(f"exit_{k}", partial(classifier, exit_=exit_)) for k, exit_ in enumerate(exits)]
    head = written("head", partial(classifier, exit_=None))
    book.close()
    hashes = {f"segments/{f}": h for f, h in book.hashes.items()}
    steps = range(len(segments))
    schedule = [{"segment": k, "cache": k, "exit": k if k < len(exits) else None} for k in steps]
    return WrittenGraphs(made, segments, asked, head, [], None, None, schedule, hashes)
