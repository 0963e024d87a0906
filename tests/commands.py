"""The command line, called in this process."""

import json
from typing import Any

from click.testing import CliRunner, Result

from eecompile.cli import main


def cli(*arguments: object, status: int = 0) -> Result:
    """Run a command; it has to end with `status`."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == status, (result.output, result.stderr, result.exception)
    return result


def cli_json(*arguments: object) -> Any:
    """The one JSON object that a command prints."""
    return json.loads(cli(*arguments, "--json").stdout)
