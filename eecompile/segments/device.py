"""A device's graphs: the bundle's own in the dialect of a parser, computed in a 16-bit float, on the same weights.

The writers write what they always write. What an engine's parser does not take is rewritten when a graph is saved
(passes/), and every graph is checked node by node. Names, inputs and outputs stay.
"""

from functools import partial
from pathlib import Path

from onnx import helper

from eecompile import contract as c
from eecompile.errors import UsageError
from eecompile.schema import ComputeType
from eecompile.segments.graph import IR_VERSION, Form, GraphFolder
from eecompile.segments.passes.attention import every, has_softcap, lower_attention
from eecompile.segments.passes.check import NEWEST, Dialect, check_dialect
from eecompile.segments.passes.flag import cast_flag
from eecompile.segments.passes.half import compute_in
from eecompile.segments.passes.norm import lower_norms
from eecompile.segments.passes.rotary import lower_rotary
from eecompile.segments.passes.scatter import lower_scatter
from eecompile.segments.split import Cut, GraphSet, write_graphs
from eecompile.segments.weights import WeightBook


def write_device_graphs(
    cut: Cut, root: Path, book: WeightBook, *, dialect: Dialect, opset: int, compute: ComputeType
) -> GraphSet:
    """Write the graphs of `cut` for a device into root/segments as device_<name>.onnx, beside those of the bundle.

    book: where the bundle's graphs keep their weights, which these share; tensors that are there in another type only
    are added to it in a file of their own. opset: the newest that the target takes.
    Raises UsageError where the model cannot be written so.
    """
    length = cut.context + cut.slack
    form = device_form(cut.student.spec.head_dim, length, dialect=dialect, opset=opset, compute=compute)
    folder = GraphFolder(root / "segments", book, form)
    graphs, _ = write_graphs(cut, cut.writer(), folder, lambda stage: None)
    book.close()
    return graphs


def device_form(head_dim: int, length: int, *, dialect: Dialect, opset: int, compute: ComputeType) -> Form:
    """How graphs are finished for a device; `length`: of the caches, which an engine updates in place only where it
    knows that. Raises UsageError where the opset is too old for the dialect."""
    newest = min(opset, NEWEST[dialect])
    if dialect == "modern" and newest < NEWEST["modern"]:
        raise UsageError(
            f"the dialect modern needs opset {NEWEST['modern']}, and the target takes {opset}",
            mend='say dialect = "classic" in the target\'s description',
        )
    classic = dialect == "classic"
    lowered = (
        # no engine's attention layer bounds scores, and its cache update takes no integers
        partial(lower_attention, head_dim=head_dim, which=every if classic else has_softcap),
        partial(lower_scatter, which=lambda dtype: classic or dtype == "int64"),
    )
    return Form(
        prefix=c.DEVICE_PREFIX,
        opset=newest,
        ir_version=min(IR_VERSION, helper.find_min_ir_version_for([helper.make_opsetid("", newest)])),
        functions=not classic,
        quantizes=True,
        passes=(
            *((lower_rotary, lower_norms) if classic else ()),
            *lowered,
            partial(compute_in, compute=compute),
            cast_flag,
        ),
        check=partial(check_dialect, dialect=dialect),
        sizes=((c.LENGTH, length),),
    )
