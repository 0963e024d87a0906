"""The C++ runtime cross-compiled for arm64 and run under qemu: the tokens that the Python runtime has here."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from compiled import ROOT, SOURCES

from eecompile.runtime import Bundle, Sampling

pytestmark = pytest.mark.slow
CORTEX_A72 = (
    "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\n"
    "CPU part\t: 0xd08\nCPU revision\t: 3\n"
)
COMPILER = "aarch64-linux-gnu-g++"
SYSROOT = Path("/usr/aarch64-linux-gnu")
DEPS = ROOT / "build" / "deps-arm64"
PROMPT = [3, 1, 4, 1, 5]
DRAFTS = {1: {"max_prob": 0.04}, 3: {"max_prob": 0.04}}


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root that qemu shows: Debian's libraries for arm64, and a processor without caches. What this machine's own
    processor says of its caches makes ONNX Runtime for arm64 crash when it is loaded."""
    root = tmp_path_factory.mktemp("arm64")
    (root / "lib").symlink_to(SYSROOT / "lib")
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text(CORTEX_A72)
    for number in range(os.cpu_count() or 1):
        folder = root / f"sys/devices/system/cpu/cpu{number}/cache/index2"
        folder.mkdir(parents=True)
        for name in ("level", "size", "shared_cpu_list"):
            (folder / name).touch()
    return root


@pytest.fixture(scope="module")
def emulated(prefix: Path) -> list[str]:
    """The words of eecompile-run for arm64."""
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None or shutil.which(COMPILER) is None:
        pytest.skip("no cross-compiler or no qemu: apt-get install g++-aarch64-linux-gnu qemu-user")
    library = DEPS / "lib" / "libonnxruntime.so.1"
    if not library.exists():
        pytest.skip(f"no {library}: run `make arm64`")
    folder = ROOT / "build" / "cpp-arm64"
    options = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={COMPILER}"]
    for command in (["-S", SOURCES, "-B", folder, f"-DCMAKE_PREFIX_PATH={DEPS}", *options], ["--build", folder, "-j2"]):
        done = subprocess.run(["cmake", *map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return [emulator, "-L", str(prefix), str(folder / "eecompile-run"), "--onnxruntime", str(library), "--threads", "1"]


def tokens(emulated: list[str], opened: Bundle, mode: str, how: Sampling) -> list[int]:
    """What arm64 generates."""
    words = [str(opened.files.path), "--prompt-ids", ",".join(map(str, PROMPT)), "--mode", mode, "--json"]
    for layer in () if mode == "full" else DRAFTS:
        words += ["--threshold", f"{layer}:max_prob={DRAFTS[layer]['max_prob']}"]
    words += ["--max-new-tokens", "16", "--temperature", str(how.temperature), "--seed", str(how.seed)]
    done = subprocess.run([*emulated, *words], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[int] = json.loads(done.stdout)["token_ids"]
    return found


@pytest.mark.parametrize("how", [Sampling(), Sampling(temperature=0.8, seed=4)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_tokens_are_those_of_this_machine(shelf: Any, emulated: list[str], precision: str, how: Sampling) -> None:
    """In int4 ONNX Runtime's kernels for arm64 round otherwise: near-ties fall otherwise, but alike in both modes."""
    opened: Bundle = shelf.bundle(at=[1, 3], precision=precision, gain=0.35)
    found = tokens(emulated, opened, "full", how)
    assert tokens(emulated, opened, "exact", how) == found
    count = 4 if precision == "int4" else 16
    own = [token.id for token in opened.session().generate(PROMPT, max_new_tokens=16, sampling=how)]
    assert found[:count] == own[:count]
