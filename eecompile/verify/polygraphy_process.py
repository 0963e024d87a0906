"""`python -m eecompile.verify.polygraphy_process`: runs Polygraphy's command line, again and again.

Reads lines of JSON, [log file, arguments]; runs `polygraphy` with the arguments in a process of its own, which says
what it says into the log; prints its exit status. Loading Polygraphy and what it loads (torch, where that is installed)
takes longer than most checks: it is done once, and each process is forked from there. Nothing runs here, so that there
are no threads to fork.
"""

import json
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

LOADED = ("onnxruntime", "torch", "polygraphy.comparator", "polygraphy.tools.run", "eecompile.verify")


def main() -> None:
    """Serve until the input ends."""
    for module in LOADED:
        with suppress(ImportError):
            import_module(module)
    for line in sys.stdin:
        log, arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(log, arguments)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(log: str, arguments: list[str]) -> NoReturn:
    """Be `polygraphy` with these arguments, and end."""
    status = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for stream in (1, 2):
            os.dup2(file, stream)
        sys.argv = ["polygraphy", *arguments]
        from polygraphy.tools import main as polygraphy

        status = polygraphy()
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
