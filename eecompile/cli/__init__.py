"""The command line. Commands parse and print; the work is in the packages they call."""

import click

from eecompile import __version__
from eecompile.cli import analyze, engines, make, manage, measure, train, use


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="eecompile")
def main() -> None:
    """Compile early-exit transformers to bundles, run them, and prove what they save.

    Exit status: 0 pass, 1 a check failed, 2 usage, 3 a back end or tool is missing, 4 a bundle is not intact.
    """


for command in (
    *make.COMMANDS,
    *use.COMMANDS,
    *measure.COMMANDS,
    *manage.COMMANDS,
    *train.COMMANDS,
    *analyze.COMMANDS,
    *engines.COMMANDS,
):
    main.add_command(command)
