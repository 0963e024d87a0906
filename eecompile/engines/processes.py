"""Run one engine's build in a process of its own, and say what ended it where it does not say so itself."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import IO, Any

from eecompile.engines.jobs import EngineDone, EngineFault, EngineJob
from eecompile.errors import EECompileError, MissingBackend

CHILD = (sys.executable, "-m", "eecompile.engines.child")
_SHOWN = 600  # characters of what it said last


def run_in_process(job: EngineJob, progress: Callable[[str], None], lock: int) -> EngineDone:
    """Build `job` (child.py). lock: a file descriptor that the process keeps open. Raises EECompileError."""
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(
            [*CHILD, str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, pass_fds=(lock,),
            text=True,
        ) as process:  # fmt: skip
            try:
                answer = _converse(process, job, progress)
            except BaseException:
                process.kill()
                raise
        if "done" in answer:
            return EngineDone.model_validate(answer["done"])
        if "fault" in answer:
            raise _fault(EngineFault.model_validate(answer["fault"]))
        raise EECompileError(_ending(process.returncode, said), where=job.graph, mend=_mend(process.returncode))


def _converse(process: "subprocess.Popen[str]", job: EngineJob, progress: Callable[[str], None]) -> dict[str, Any]:
    """The last answer, {} where it gave none."""
    assert process.stdin is not None
    assert process.stdout is not None
    answer: dict[str, Any] = {}
    try:
        process.stdin.write(job.model_dump_json())
        process.stdin.close()
    except BrokenPipeError:  # it ended before it read the job; what it said tells why
        return answer
    for line in process.stdout:
        answer = json.loads(line)
        if "progress" in answer:
            progress(str(answer["progress"]))
    return answer


def _fault(fault: EngineFault) -> EECompileError:
    kind = MissingBackend if fault.missing else EECompileError
    return kind(fault.what, where=fault.where, mend=fault.mend)


def _ending(code: int, said: IO[bytes]) -> str:
    said.seek(0)
    last = " ".join(said.read().decode(errors="replace").split())[-_SHOWN:]
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    return f"the process that builds it was {how}" + (f"; it said: {last}" if last else "")


def _mend(code: int) -> str:
    if code == -signal.SIGKILL:
        return "it may have run out of memory: close what else runs here, or add swap; finished engines are kept"
    return "run the command again: finished engines are kept"
