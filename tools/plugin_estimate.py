"""The exit decision's kernel from the compiler's reports alone, for each GPU: the tables of its README.

    python tools/plugin_estimate.py [--nvcc nvcc] [--nvdisasm nvdisasm]

writes them between the README's marks. Needs nvcc 13.0 or newer and nvdisasm (package nvidia-cuda-nvdisasm), no GPU.
Registers, shared memory and spills are what ptxas says. Instructions are counted in listings of plugin_probe.cu, as
differences between kernels that do the same thing once more, so that neither prologues nor untaken branches count.
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eecompile.target import Target, load_target, target_names

SOURCES = Path(__file__).parents[1] / "eecompile" / "plugins" / "exit_decision"
PROBE = Path(__file__).with_name("plugin_probe.cu")
MARKS = ("<!-- estimate -->\n", "<!-- end of the estimate -->\n")
MANGLED = {"If": "fp32", "I6__half": "fp16", "I13__nv_bfloat16": "bf16"}  # template arguments in kernels' names
TYPES = tuple(MANGLED.values())
SMS = (80, 86, 87, 89, 90, 100, 110, 120)
THREADS_OF_SM = {80: 2048, 90: 2048, 100: 2048}  # the others have 1,536
REGISTERS_OF_SM, REGISTER_UNIT = 65536, 8  # a thread's, as warps get them by 256
THREADS, TILE = 256, 4096
WARPS, LOGITS_OF_THREAD = THREADS // 32, TILE // THREADS
STATE_BYTES = 2 * 24  # of a tile, written and read
ROW_BYTES = 12 + 8 + 4 * 4  # bounds and results
HALF_RATE = {80}  # SMs that issue twice as many lanes as they have for FP32
PROBED = 16  # logits that `many` adds and `few` does not


@dataclass(frozen=True)
class Kernel:
    """What a thread takes. instructions: for each logit, with its share of the reductions of a full tile."""

    registers: int
    shared: int
    spills: int
    instructions: float

    def blocks(self, sm: int) -> int:
        """Blocks that an SM holds at a time."""
        granted = -(-self.registers // REGISTER_UNIT) * REGISTER_UNIT
        return min(THREADS_OF_SM.get(sm, 1536), REGISTERS_OF_SM // granted) // THREADS

    def occupancy(self, sm: int) -> float:
        """Share of an SM's threads that are resident."""
        return self.blocks(sm) * THREADS / THREADS_OF_SM.get(sm, 1536)


def read_report(text: str) -> dict[int, dict[str, tuple[int, int, int]]]:
    """Registers, shared bytes and spilt bytes by compute capability and type, of what `ptxas -v` says of kernel.cu."""
    found: dict[int, dict[str, tuple[int, int, int]]] = {}
    pattern = r"Compiling entry function '(\S+)' for 'sm_(\d+)'(.*?Used [^\n]*)"
    for mangled, sm, body in re.findall(pattern, text, re.DOTALL):
        (name,) = (name for code, name in MANGLED.items() if f"decide{code}E" in mangled)
        spills = sum(map(int, re.findall(r"(\d+) bytes spill", body)))
        taken = int(number(r"Used (\d+) registers", body)), int(number(r"(\d+) bytes smem", body)), spills
        found.setdefault(int(sm), {})[name] = taken
    return found


def number(pattern: str, text: str) -> str:
    """The first group of `pattern` in `text`; raises ValueError where it is not there."""
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"no {pattern!r} in {text[:200]!r}")
    return match[1]


def count_instructions(listing: str) -> dict[str, int]:
    """Instructions of each kernel in a listing, without the padding behind its end."""
    parts = re.split(r"\.section\s+\.text\.(\w+)", listing)
    counts = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        lines = [line for line in body.splitlines() if re.match(r"\s+/\*[0-9a-f]{4,}\*/", line)]
        counts[name] = sum(not re.search(r"\*/\s+(NOP|BRA)\b", line) for line in lines)
    return counts


def per_logit(counts: Mapping[str, int], name: str) -> float:
    """Instructions for a logit. Every warp of a block reduces once, and its first warp once more."""
    adding = (counts[f"{name}_many"] - counts[f"{name}_few"]) / PROBED
    reducing = counts[f"{name}_warp"] - counts[f"{name}_few"]
    return adding + reducing * (1 + 1 / WARPS) / LOGITS_OF_THREAD


def measure(nvcc: str, nvdisasm: str) -> dict[int, dict[str, Kernel]]:
    """The kernels of every compute capability."""
    base, made = [nvcc, "-O3", "-std=c++17", f"-I{SOURCES}"], {}
    with tempfile.TemporaryDirectory() as folder:
        cubin = f"{folder}/probe.cubin"
        codes = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in SMS]
        report = run([*base, "-Xptxas=-v", *codes, "-c", str(SOURCES / "kernel.cu"), "-o", f"{folder}/kernel.o"])
        for sm, by_type in read_report(report).items():
            run([*base, "-cubin", f"-arch=sm_{sm}", str(PROBE), "-o", cubin])
            counts = count_instructions(run([nvdisasm, "-c", cubin]))
            made[sm] = {name: Kernel(*taken, per_logit(counts, name)) for name, taken in by_type.items()}
    return made


def run(command: list[str]) -> str:
    """What a command prints; it has to succeed."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


def sm_table(kernels: Mapping[int, Mapping[str, Kernel]]) -> list[str]:
    """A row for each compute capability."""
    lines = [
        "| sm | registers: fp32, fp16, bf16 | blocks an SM | occupancy | instructions a logit |",
        "|---|---|---|---|---|",
    ]
    for sm, by_type in kernels.items():
        all_of = [by_type[name] for name in TYPES]
        cells = (
            [str(k.registers) for k in all_of],
            [str(k.blocks(sm)) for k in all_of],
            [f"{k.occupancy(sm):.0%}" for k in all_of],
            [f"{k.instructions:.1f}" for k in all_of],
        )
        lines.append(f"| {sm} | " + " | ".join(", ".join(cell) for cell in cells) + " |")
    return lines


def row_bytes(vocab: int, size: int) -> int:
    """Bytes that one row moves."""
    tiles = -(-vocab // TILE)
    return vocab * size + (tiles * STATE_BYTES if tiles > 1 else 0) + ROW_BYTES


def target_table(kernels: Mapping[int, Mapping[str, Kernel]]) -> list[str]:
    """A row for each target with one GPU: microseconds below which no launch can come, by bytes and by instructions."""
    lines = [
        "| target | bytes: 1 x 49,152 | 1 x 151,936 | 256 x 151,936 | instructions: 256 x 151,936 | rate |",
        "|---|---|---|---|---|---|",
    ]
    for name in target_names():
        target = load_target(name)
        if len(target.sm) == 1 and target.bandwidth:
            lines.append(target_row(name, target, kernels[target.sm[0]]["fp16"]))
    return lines


def target_row(name: str, target: Target, kernel: Kernel) -> str:
    """fp16 logits on one GPU."""
    moved = [rows * row_bytes(vocab, 2) / target.bandwidth * 1e6 for rows, vocab in ((1, 49152), (1, 151936))]
    batch = 256 * moved[1]
    lanes = target.flops["fp32"] / 2 * (2 if target.sm[0] in HALF_RATE else 1)
    issued = 256 * 151936 * kernel.instructions / lanes * 1e6
    figures = [f"{x:.2f}" if x < 10 else f"{x:.0f}" for x in (*moved, batch, issued)]
    return f"| {name} | {' | '.join(figures)} | {min(1.0, batch / issued):.0%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--nvdisasm", default="nvdisasm")
    options = parser.parse_args()
    kernels = measure(options.nvcc, options.nvdisasm)
    if any(k.spills for by_type in kernels.values() for k in by_type.values()):
        raise SystemExit("a kernel spills registers")
    version = number(r"release (\d+\.\d+)", run([options.nvcc, "--version"]))
    tables = [*sm_table(kernels), "", "fp16:", "", *target_table(kernels)]
    text = "\n".join([f"CUDA {version}, `-O3`:", "", *tables, ""])
    readme = SOURCES / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    readme.write_text(before + MARKS[0] + text + MARKS[1] + after, encoding="utf-8")


if __name__ == "__main__":
    main()
