"""How commands talk: results on stdout, progress and faults on stderr, exit status by kind of fault."""

import errno
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from eecompile.errors import EECompileError

Command = TypeVar("Command", bound=Callable[..., Any])
INTERRUPTED = 130
LOG_SECONDS = 10.0  # between progress lines where stderr is not a terminal


class _Console(Console):
    """Prints to a reader who may leave early, as `head` does, which is no fault."""

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0)


# a pipe has no width of its own
out = _Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def user_faults(command: Command) -> Command:
    """Print an EECompileError without a traceback and exit with its status; bugs keep their traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **options: Any) -> Any:
        try:
            found = command(*args, **options)
            sys.stdout.flush()
            return found
        except EECompileError as e:
            err.print(f"[bold red]error[/] {_escape(str(e))}")
            sys.exit(e.exit_status)
        except KeyboardInterrupt:
            err.print("interrupted; nothing half-written was left behind")
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(0)

        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EIO) or e.filename is not None:
                raise
            err.print(f"[bold red]error[/] stdout cannot be written ({e.strerror})")
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)

    return wrapped  # type: ignore[return-value]


@contextmanager
def stages(title: str, total: int | None = None) -> Iterator[Callable[[str], None]]:
    """A bar on stderr that moves on each call with the name of the stage that begins; in a log, a line now and then."""
    if not err.is_terminal:
        yield _logged(title)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(title, total=total)

        def begin(stage: str) -> None:
            progress.update(task, advance=1, description=f"{title}: {_escape(stage)}")

        yield begin


def _logged(title: str) -> Callable[[str], None]:
    last = 0.0

    def begin(stage: str) -> None:
        nonlocal last
        if time.monotonic() - last >= LOG_SECONDS:
            last = time.monotonic()
            err.print(f"{title}: {_escape(stage)}")

    return begin


def print_json(value: Any) -> None:
    """One JSON object on stdout and nothing else."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


def say(text: str) -> None:
    """A line on stdout."""
    out.print(_escape(text))


def print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A table on stdout."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 or len(columns) == 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_escape(str(cell)) for cell in row))
    out.print(table)


def _escape(text: str) -> str:
    """Text from outside, with rich's markup and the terminal's control characters made harmless."""
    return escape("".join(ch if ch.isprintable() or ch == "\n" else repr(ch)[1:-1] for ch in text))
