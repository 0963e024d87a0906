"""The peak that a building process reports is its own."""

import subprocess
import sys

import numpy as np

from eecompile.engines.resident import peak_bytes


def test_a_child_does_not_bear_its_parents_memory() -> None:
    block = np.ones(300_000_000, np.uint8)
    command = "from eecompile.engines.resident import peak_bytes; print(peak_bytes())"
    child = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert 1e6 < int(child.stdout) < block.nbytes < peak_bytes()
