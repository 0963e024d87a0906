"""What is made of the compiler's reports."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))
from toolchain import estimate

tool = estimate()
REPORT = """\
ptxas info    : Compiling entry function '_ZN9eecompile7kernels6decideI6__halfEEvNS0_4TaskE' for 'sm_87'
ptxas info    : Function properties for _ZN9eecompile7kernels6decideI6__halfEEvNS0_4TaskE
    0 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 48 registers, used 1 barriers, 192 bytes smem, 488 bytes cmem[0]
ptxas info    : Compile time = 10.0 ms
ptxas info    : Compiling entry function '_ZN9eecompile7kernels6decideIfEEvNS0_4TaskE' for 'sm_87'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 42 registers, used 1 barriers, 192 bytes smem, 488 bytes cmem[0]
"""
LISTING = """\
\t.section\t.text.fp16_few,"ax",@progbits
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 FADD R2, R2, R3 ;
        /*0020*/                   EXIT ;
.L_x_0:
        /*0030*/                   BRA `(.L_x_0);
        /*0040*/                   NOP;
\t.section\t.text.fp16_many,"ax",@progbits
        /*0000*/                   EXIT ;
"""


def test_reports_are_read_by_capability_and_type() -> None:
    assert tool.read_report(REPORT) == {87: {"fp16": (48, 192, 12), "fp32": (42, 192, 0)}}


def test_a_report_without_registers_is_a_fault() -> None:
    with pytest.raises(ValueError, match="smem"):
        tool.read_report(REPORT.replace("192 bytes smem, ", ""))


def test_instructions_are_counted_without_padding() -> None:
    assert tool.count_instructions(LISTING) == {"fp16_few": 3, "fp16_many": 1}


def test_instructions_of_a_logit_are_differences() -> None:
    """224 more for 16 logits; 64 for a warp's reduction, of which a block does nine for 16 logits of each thread."""
    counts = {"fp16_few": 230, "fp16_many": 454, "fp16_warp": 294}
    assert tool.per_logit(counts, "fp16") == 224 / 16 + 64 * 9 / 8 / 16


@pytest.mark.parametrize(
    ("registers", "sm", "blocks", "occupancy"),
    [(32, 90, 8, 1.0), (40, 90, 6, 0.75), (42, 80, 5, 0.625), (48, 87, 5, 1280 / 1536), (32, 87, 6, 1.0)],
)
def test_occupancy(registers: int, sm: int, blocks: int, occupancy: float) -> None:
    kernel = tool.Kernel(registers, 192, 0, 18.0)
    assert (kernel.blocks(sm), kernel.occupancy(sm)) == (blocks, occupancy)


def test_bytes_of_a_row() -> None:
    assert tool.row_bytes(4096, 2) == 8192 + 36
    assert tool.row_bytes(49152, 4) == 196608 + 12 * 48 + 36


def test_a_targets_floors() -> None:
    """One H100 row: 304 kB at 3.35 TB/s; 256 rows at 10 instructions a logit and 33.5e12 lanes a second."""
    line = tool.target_row("h100", tool.load_target("h100"), tool.Kernel(32, 192, 0, 10.0))
    assert line == "| h100 | 0.03 | 0.09 | 23 | 12 | 100% |"
