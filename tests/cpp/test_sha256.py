"""The C++ runtime's SHA-256 is hashlib's, with the processor's instructions and without them, on x86 and arm64."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from compiled import SOURCES

SIZES = [0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 1000, 4096, 100_003]


def compiled(compiler: str, folder: Path, *options: str) -> Path:
    """The program of sha256_main.cpp."""
    if (found := shutil.which(compiler)) is None:
        pytest.skip(f"{compiler} is not installed")
    program = folder / "hasher"
    files = [Path(__file__).with_name("sha256_main.cpp"), SOURCES / "src" / "sha256.cpp"]
    strict = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", *options]
    subprocess.run([found, *strict, f"-I{SOURCES / 'src'}", *files, "-o", program], check=True)
    return program


def hashed(words: list[object], size: int) -> str:
    """What the program hashes with by itself; both of its ways have to give hashlib's hash, whole and in pieces."""
    data = np.random.default_rng(size).bytes(size)
    done = subprocess.run([*map(str, words)], input=data, capture_output=True, check=True)
    way, *hashes = done.stdout.decode().split()
    assert hashes == [hashlib.sha256(data).hexdigest()] * 4
    return way


@pytest.fixture(scope="module")
def hasher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("c++", tmp_path_factory.mktemp("sha256"))


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_same_hash(hasher: Path, size: int) -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    assert (hashed([hasher], size) == "instructions") is ("sha_ni" in flags or "sha2" in flags)


@pytest.mark.slow
def test_it_is_the_same_hash_on_arm64(tmp_path: Path) -> None:
    """Every processor that qemu knows has the instructions; the program is asked for both ways."""
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("qemu-user is not installed")
    program = compiled("aarch64-linux-gnu-g++", tmp_path, "-static")
    for size in SIZES:
        assert hashed([emulator, program], size) == "instructions"
