"""`optimum-cli export eecompile`: forwards to `eecompile build`.

Optimum's command line loads every file of this name space; it has no `__init__.py`, in any of its packages.
"""

from argparse import REMAINDER, ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class EECompileExportCommand(BaseOptimumCLICommand):
    """Everything behind `eecompile` is for `eecompile build`, `--help` too."""

    COMMAND = CommandInfo(
        name="eecompile",
        help="Build an eecompile bundle: an early-exit transformer cut into ONNX or TensorRT segments.",
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Leave every argument as it is."""
        parser.prefix_chars = "\0"  # no argument has this: none is an option of this parser
        parser.add_argument("arguments", nargs=REMAINDER)

    def run(self) -> None:
        """Build, and end the process with its exit status."""
        from eecompile.cli.make import build

        build.main(self.args.arguments, prog_name="optimum-cli export eecompile")


REGISTER_COMMANDS = [(EECompileExportCommand, ExportCommand)]
