"""The C++ runtime's SHA-256 is hashlib's, with the processor's instructions and without them."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from compiled import SOURCES


@pytest.fixture(scope="module")
def hasher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (compiler := shutil.which("c++")) is None:
        pytest.skip("c++ is not installed: the C++ runtime stays uncompiled here")
    program = tmp_path_factory.mktemp("sha256") / "hasher"
    files = [Path(__file__).with_name("sha256_main.cpp"), SOURCES / "src" / "sha256.cpp"]
    subprocess.run([compiler, "-std=c++17", "-O1", f"-I{SOURCES / 'src'}", *files, "-o", program], check=True)
    return program


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 1000, 4096, 100_003])
def test_it_is_the_same_hash(hasher: Path, size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    done = subprocess.run([hasher], input=data, capture_output=True, check=True)
    assert done.stdout.decode().split() == [hashlib.sha256(data).hexdigest()] * 4
