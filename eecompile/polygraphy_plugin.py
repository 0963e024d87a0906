"""`polygraphy run --eecompile --eecompile-bundle BUNDLE`: a bundle's segments as a runner beside Polygraphy's own.

Polygraphy loads this through the entry point group `polygraphy.run.plugins` on every `polygraphy run`, whatever is run,
and nobody else does: so it imports Polygraphy, which is an extra, and of eecompile only what is needed at that moment.
"""

from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata
from polygraphy.logger import G_LOGGER
from polygraphy.tools.args import ComparatorCompareArgs, DataLoaderArgs, ModelArgs
from polygraphy.tools.args import util as args_util
from polygraphy.tools.args.base import BaseArgs, BaseRunnerArgs
from polygraphy.tools.script import Script, make_invocable

from eecompile.errors import EECompileError

Found = TypeVar("Found")


def arg_groups() -> list[BaseArgs]:
    """What the entry point gives Polygraphy."""
    return [EECompileRunnerArgs()]


class EECompileRunner(BaseRunner):
    """Runs a bundle's embedding, segments and head on the inputs of its uncut graph, at full depth."""

    def __init__(self, bundle: str, name: str | None = None) -> None:
        super().__init__(name=name, prefix="eecompile-runner")
        self._bundle = bundle

    def activate_impl(self) -> None:
        """Check the bundle. Graphs load when they first run."""
        from eecompile.bundle.read import read_bundle
        from eecompile.verify.chain import Chain

        self._chain = _tried(lambda: Chain(read_bundle(Path(self._bundle))))

    def get_input_metadata_impl(self) -> TensorMetadata:
        """The uncut graph's inputs."""
        found = TensorMetadata()
        for tensor in self._chain.uncut.inputs:
            found.add(tensor.name, dtype=np.dtype(tensor.dtype), shape=tensor.shape)
        return found

    def infer_impl(self, feed_dict: Mapping[str, NDArray[Any]]) -> "OrderedDict[str, NDArray[Any]]":
        """The uncut graph's outputs, by the chain."""
        start = perf_counter()
        outputs = self._chain.infer(feed_dict)
        self.inference_time = perf_counter() - start
        return OrderedDict(outputs)

    def deactivate_impl(self) -> None:
        """Free the graphs."""
        del self._chain


class EECompileRunnerArgs(BaseRunnerArgs):
    """
    eecompile Bundle: running a bundle's segments in the place of its uncut graph (BUNDLE/reference.onnx).

    Depends on:

        - ModelArgs
        - DataLoaderArgs
        - ComparatorCompareArgs
    """

    def get_name_opt_impl(self) -> tuple[str, str]:
        """What the runner is called, and the option that selects it."""
        return "eecompile", "eecompile"

    def add_parser_args_impl(self) -> None:
        """The option that says which bundle."""
        self.group.add_argument(
            "--eecompile-bundle",
            help="The bundle's directory. Where no inputs are given, valid ones are made up; where no comparison is "
            "chosen, rows are held to the tolerance of the bundle's precision, and exit decisions that differ named.",
            default=None,
        )

    def parse_impl(self, args: Namespace) -> None:
        """Take in the options: `bundle`, or None, and whether a comparison was chosen."""
        self.bundle = args_util.get(args, "eecompile_bundle")
        options = ("compare_func_script", "rtol", "atol", "check_error_stat", "error_quantile")
        chosen = args_util.get(args, "compare") not in (None, "simple", ["simple"])  # a list from 0.50 on
        self._compares = chosen or any(args_util.get(args, option) is not None for option in options)
        if self.bundle is None and "eecompile" in args_util.get(args, "runners", []):
            G_LOGGER.critical("--eecompile needs a bundle: add --eecompile-bundle DIRECTORY")

    def add_to_script_impl(self, script: Script) -> None:
        """Add the runner, and what its inputs and their comparison are, unless the user has said so."""
        from eecompile.bundle.read import read_bundle
        from eecompile.verify.chain import Chain
        from eecompile.verify.made_up import input_ranges, input_shapes
        from eecompile.verify.tolerances import coarsest

        files = _tried(lambda: read_bundle(Path(self.bundle), integrity="size"))
        uncut = _tried(lambda: Chain(files).uncut)
        self._make_up(input_shapes(uncut), input_ranges(files.manifest))
        self._compare_by(coarsest(files.manifest))
        script.add_import(imports=["EECompileRunner"], frm=__name__)
        script.add_runner(make_invocable("EECompileRunner", self.bundle))

    def _make_up(self, shapes: Mapping[str, list[int]], ranges: Mapping[str, tuple[int, int]]) -> None:
        """Have Polygraphy's random inputs, if it is to use any, be valid ones."""
        loader, model = self.arg_groups[DataLoaderArgs], self.arg_groups[ModelArgs]
        if not loader.is_using_random_data():
            return
        loader.val_range = {**ranges, **(loader.val_range or {})}
        for name, shape in shapes.items():
            if name not in model.input_shapes:
                model.input_shapes.add(name, dtype=None, shape=shape)

    def _compare_by(self, precision: str) -> None:
        """Compare by the precision's tolerance, if nothing else was chosen."""
        from eecompile.verify import polygraphy_compare

        if not self._compares:
            compare = self.arg_groups[ComparatorCompareArgs]
            compare.compare_func_script = polygraphy_compare.__file__
            compare.compare_func_name = polygraphy_compare.BY_PRECISION[precision]


def _tried(step: Callable[[], Found]) -> Found:
    """The step's outcome; a user's fault is told as Polygraphy tells its own."""
    try:
        return step()
    except EECompileError as e:
        G_LOGGER.critical(str(e))
        raise  # critical does not return
