"""The process that builds one engine: a job on stdin, lines of JSON on stdout (jobs.py).

    python -m eecompile.engines.child PARENT < job.json

PARENT is the id of the process that waits for the answers; with its end this one ends. Each line is {"progress": text};
the last {"done": EngineDone} or {"fault": EngineFault}. Exit status 0 or 1. A fault of the vendor's library may end it
in any way at all, which is why it is a process.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from eecompile.engines.jobs import EngineDone, EngineFault, EngineJob
from eecompile.engines.network import Progress, build_engine
from eecompile.engines.packages import load_module
from eecompile.errors import EECompileError, MissingBackend
from eecompile.plugins.exit_decision.aot import Compile, compile_ptx, register_aot
from eecompile.plugins.library import PluginLibrary, find_library, load_library
from eecompile.schema import Strict

_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


def main() -> int:
    """Run the job on stdin. What libraries print goes to stderr."""
    end_with(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = EngineJob.model_validate_json(sys.stdin.read(), strict=True)
    try:
        done = run_job(job, lambda stage: _answer(answers, "progress", stage))
    except EECompileError as e:
        fault = EngineFault(what=e.what, where=e.where, mend=e.mend, missing=isinstance(e, MissingBackend))
        _answer(answers, "fault", fault)
        return 1
    except OSError as e:
        _answer(answers, "fault", EngineFault(what=f"a file cannot be read or written: {e}", where=job.graph))
        return 1
    _answer(answers, "done", done)
    return 0


def end_with(parent: int) -> None:
    """Have the kernel kill this process once `parent` has ended: nobody would wait for its engine, which takes minutes
    and the machine's memory. A signal cannot be late: a vendor's library may hold the interpreter for all that time.

    Linux tells of the thread that started this process, which waits for as long as it runs (processes.py).
    """
    if (prctl := getattr(ctypes.CDLL(None), "prctl", None)) is not None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it ended before the kernel was asked
        sys.exit(1)


def run_job(
    job: EngineJob, progress: Progress, *,
    load: Callable[[str], Any] | None = None,
    register: Callable[[Any, PluginLibrary], None] = load_library,
    kernels: Compile = compile_ptx,
) -> EngineDone:  # fmt: skip
    """Build the job's engine in this process. Raises EECompileError."""
    trt = (load or load_module)(job.module)
    if job.plugin is not None and (library := find_library(Path(job.plugin))) is not None:
        register(trt, library)
    if job.aot:
        ptx = kernels()  # now: the builder would not tell of what its callbacks raise
        register_aot(trt, lambda: ptx)
    return build_engine(trt, job, progress)


def _answer(answers: TextIO, kind: str, value: str | Strict) -> None:
    answers.write(json.dumps({kind: value.model_dump(mode="json") if isinstance(value, Strict) else value}) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
