"""The process that builds one engine: a job on stdin, lines of JSON on stdout (jobs.py).

    python -m eecompile.engines.child < job.json

Each line is {"progress": text}; the last {"done": EngineDone} or {"fault": EngineFault}. Exit status 0 or 1. A fault of
the vendor's library may end it in any way at all, which is why it is a process.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from eecompile.engines.jobs import EngineDone, EngineFault, EngineJob
from eecompile.engines.network import Progress, build_engine
from eecompile.engines.packages import load_module
from eecompile.errors import EECompileError, MissingBackend
from eecompile.plugins.library import PluginLibrary, find_library, load_library
from eecompile.schema import Strict


def main() -> int:
    """Run the job on stdin. What libraries print goes to stderr."""
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


def run_job(
    job: EngineJob, progress: Progress, *,
    load: Callable[[str], Any] | None = None,
    register: Callable[[Any, PluginLibrary], None] = load_library,
) -> EngineDone:  # fmt: skip
    """Build the job's engine in this process. Raises EECompileError."""
    trt = (load or load_module)(job.module)
    if job.plugin is not None and (library := find_library(Path(job.plugin))) is not None:
        register(trt, library)
    return build_engine(trt, job, progress)


def _answer(answers: TextIO, kind: str, value: str | Strict) -> None:
    answers.write(json.dumps({kind: value.model_dump(mode="json") if isinstance(value, Strict) else value}) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
