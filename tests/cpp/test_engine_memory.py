"""The memory that the C++ runtime gives ONNX Runtime: blocks of their own, given back and used again."""

import shutil
import subprocess
from pathlib import Path

import pytest
from compiled import SOURCES


def test_blocks_are_apart_and_come_back(tmp_path: Path) -> None:
    if (compiler := shutil.which("c++")) is None:
        pytest.skip("c++ is not installed: the C++ runtime stays uncompiled here")
    files = [Path(__file__).with_name("memory_main.cpp")]
    files += [SOURCES / "src" / name for name in ("weights_memory.cpp", "scratch_memory.cpp")]
    options = ["-std=c++17", "-O1", "-pthread", f"-I{SOURCES / 'src'}"]
    program = tmp_path / "memory"
    subprocess.run([compiler, *options, *files, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
