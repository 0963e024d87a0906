"""eecompile-stress and the fuzz targets, built with one sanitizer or none, and questions to them."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from compiled import DEPS, compile_all

ONNXRUNTIME = DEPS / "lib" / "libonnxruntime.so.1"
SUPPRESSIONS = Path(__file__).parent / "tsan.supp"
KINDS = {
    "address": ("cpp-asan", "-DEECOMPILE_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1"),
    "thread": ("cpp-tsan", "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1 -g1 -fsanitize=thread"),
    "none": ("cpp-test",),  # the folder of the other tests
}
ENVIRONMENT = {
    **os.environ,
    "ASAN_OPTIONS": "exitcode=99:allocator_may_return_null=1:max_allocation_size_mb=4096:malloc_context_size=8:"
    "quarantine_size_mb=16:handle_abort=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": f"exitcode=99:suppressions={SUPPRESSIONS}",
}


def built(sanitizer: str) -> Path:
    """The folder with everything."""
    name, *options = KINDS[sanitizer]
    return compile_all(name, *options, "-DEECOMPILE_FUZZ=ON")


def ask(folder: Path, verb: str, *words: object, **named: object) -> dict[str, Any]:
    """What a verb of eecompile-stress reports; nothing may break."""
    options = [str(part) for name, value in named.items() for part in (f"--{name.replace('_', '-')}", value)]
    command = [str(folder / "fuzz" / "eecompile-stress"), verb, *map(str, words), *options]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=3000, env=ENVIRONMENT)
    assert done.returncode == 0, (done.returncode, done.stderr[-6000:])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def fuzz(folder: Path, target: str, *words: object) -> None:
    """One fuzz target, which has to live."""
    command = [str(folder / "fuzz" / f"fuzz-{target}"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=3000, env=ENVIRONMENT)
    assert done.returncode == 0, (done.returncode, done.stderr[-6000:])
