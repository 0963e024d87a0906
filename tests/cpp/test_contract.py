"""contract.h says what contract.py says."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))


def test_the_header_is_what_the_module_says() -> None:
    import contract_header

    committed = ROOT / "eecompile/runtime/cpp/include/eecompile/contract.h"
    assert committed.read_text(encoding="utf-8") == contract_header.header(), (
        "write it again: python tools/contract_header.py " + str(committed.relative_to(ROOT))
    )
