"""Writes contract.py's constants as a C++ header, so that both runtimes go by the same names and limits.

    python tools/contract_header.py eecompile/runtime/cpp/include/eecompile/contract.h

The header is committed; tests/cpp/test_contract.py compares it with what this writes.
"""

import ast
import sys
from pathlib import Path

from eecompile import contract

_WIDTH = 120
_HEAD = """\
// Generated from eecompile/contract.py by tools/contract_header.py: change it there, and write this again.
//
// Shapes use the symbols of contract.py. Thread safety: constants.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <string_view>

namespace eecompile::contract {
"""


def header() -> str:
    """The header's text: a constant for each of the module's that is a number, a text or a tuple of either."""
    source = Path(contract.__file__).read_text(encoding="utf-8")
    lines, last, out = source.splitlines(), 0, [_HEAD]
    for node in ast.parse(source).body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        declared = _declaration(node.target.id, getattr(contract, node.target.id))
        if declared is None:
            continue
        if last and any(line.startswith("# --") for line in lines[last : node.lineno - 1]):
            out.append("")
        comment = lines[node.lineno - 1].partition("  # ")[2]
        beside = f"{declared}  // {comment}" if comment else declared
        out += [beside] if len(beside) <= _WIDTH or not comment else [f"// {comment}", declared]
        last = node.lineno
    return "\n".join([*out, "", "}  // namespace eecompile::contract", ""])


def _declaration(name: str, value: object) -> str | None:
    camel = "k" + "".join(word.capitalize() for word in name.split("_"))
    if isinstance(value, tuple):
        kind = _type(value[0])
        return f"constexpr std::array<{kind}, {len(value)}> {camel} = {{{', '.join(map(_literal, value))}}};"
    return f"constexpr {_type(value)} {camel} = {_literal(value)};" if isinstance(value, str | int | float) else None


def _type(value: object) -> str:
    if isinstance(value, str):
        return "std::string_view"
    return "std::int64_t" if isinstance(value, int) else "float"


def _literal(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, float):
        infinite = value == float("inf")
        return "std::numeric_limits<float>::infinity()" if infinite else f"{value!r}f"
    return str(value)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(header(), encoding="utf-8")
