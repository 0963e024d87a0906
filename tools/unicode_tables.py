"""The C++ tokenizer's Unicode tables, asked of the `tokenizers` library one code point after the other.

    python tools/unicode_tables.py eecompile/runtime/cpp/tokenizer/src/unicode_tables.inc

The library mixes several versions of Unicode (its regular expressions, its normalisation forms, its punctuation and
Rust's own character functions each come from another crate), and none of them is Python's. Identical ids need the
library's own answers, so that is what the tables hold: facts about it, found by running it. The file is committed:
a device that compiles the runtime has no Python. tests/cpp/test_tokenizer.py compares every code point again.
"""

import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import Regex
from tokenizers import normalizers as norm
from tokenizers import pre_tokenizers as pre

# a value's place is its number in the table; surrogates are in no UTF-8
CATEGORIES = ("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf",
              "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Co", "Cn")  # fmt: skip
FLAGS = ("space", "word", "regex_word", "punctuation", "numeric", "other", "nonspacing", "mark", "extends", "prepends",
         "breaks", "pictographic", "extends_emoji", "consonant", "linker", "extends_conjunct", "hangul_l", "hangul_v",
         "hangul_t")  # fmt: skip
POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CHARS = [chr(c) for c in POINTS]
HANGUL = range(0xAC00, 0xAC00 + 11172)
MARK, VIRAMA, KA, JOINER, COPYRIGHT = "\u0300", "\u094d", "\u0915", "\u200d", "\u00a9"  # 2, 3, 3, 3, 2 bytes
Say = Callable[[str], str]


def removed(splitter: pre.PreTokenizer, chars: Sequence[str] = CHARS) -> set[int]:
    """The code points of `chars` that a pre-tokeniser which looks at one character at a time takes away."""
    kept: set[str] = set()
    for _, (begin, end) in splitter.pre_tokenize_str("".join(chars)):
        kept.update(chars[begin:end])
    return {ord(c) for c in chars if c not in kept}


def matching(pattern: str) -> set[int]:
    """The code points that a regular expression of one character matches."""
    return removed(pre.Split(Regex(pattern), "removed"))


def where(holds: Callable[[str], bool]) -> set[int]:
    """The code points for whose character `holds`."""
    return {ord(c) for c in CHARS if holds(c)}


def units() -> norm.Normalizer:
    """A normaliser that writes "x" for each unit it looks up: a grapheme cluster of up to five bytes, else a character.

    Its trie holds every single byte. How many "x" a short text becomes tells where its clusters end."""
    cells = [0] * 768
    cells[0] = 256 << 10
    for byte in range(1, 256):
        cells[256 ^ byte] = byte | 1 << 8 | ((256 ^ byte ^ 512) << 10)
    cells[512] = 1 << 31
    trie = struct.pack(f"<{len(cells)}I", *cells)
    return norm.Precompiled(struct.pack("<I", len(trie)) + trie + b"x\0")


def clusters() -> dict[str, set[int]]:
    """What a code point does to the bounds of grapheme clusters, by flag."""
    say = units().normalize_str

    def count(text: str) -> int:
        return len(say(text))

    extends = where(lambda c: count("a" + c) == 1)
    breaks = where(lambda c: count(c + MARK * 2) == 2)
    base = [c for c in CHARS if ord(c) not in extends | breaks]
    linker = {c for c in extends if count(KA + chr(c) + KA + MARK) == 4}
    return {
        "extends": extends,
        "breaks": breaks,
        "prepends": {ord(c) for c in base if count(c + "a") == 1},
        "pictographic": {ord(c) for c in base if count(COPYRIGHT + JOINER + c) == 3},
        "extends_emoji": {c for c in extends if count(COPYRIGHT + chr(c) + JOINER + COPYRIGHT + MARK) == 5},
        "consonant": conjuncts(count, base),
        "linker": linker,
        "extends_conjunct": {c for c in extends - linker if count(KA + VIRAMA + chr(c) + KA + MARK) == 5},
    } | hangul(count, base)


def conjuncts(count: Callable[[str], int], base: Sequence[str]) -> set[int]:
    """Consonants that a virama joins with the next one."""
    second = {ord(c) for c in base if len(c.encode()) == 3 and count(KA + VIRAMA + c + MARK) == 4}
    return second | {ord(c) for c in base if len(c.encode()) == 4 and count(c + VIRAMA + KA + MARK) == 4}


def hangul(count: Callable[[str], int], base: Sequence[str]) -> dict[str, set[int]]:
    """Leading, vowel and trailing parts. A part of three bytes and a mark are one unit where nothing joins them."""
    wide = [c for c in base if len(c.encode()) == 3]
    after_l = {ord(c) for c in wide if count("\u1100" + c + MARK) == 3}  # L, V and whole syllables
    after_v = {ord(c) for c in wide if count("\u1161" + c + MARK) == 3}  # V and T
    after_t = {ord(c) for c in wide if count("\u11a8" + c + MARK) == 3}  # T
    four = {ord(c) for c in base if len(c.encode()) == 4 and count(c + "\u11a8" + MARK) == 3}
    return {"hangul_l": after_l - after_v - set(HANGUL), "hangul_v": after_v - after_t | four, "hangul_t": after_t}


def flags() -> dict[str, set[int]]:
    """The code points of each flag."""
    split = [text for text, _ in pre.Whitespace().pre_tokenize_str("".join(f"a{c} " for c in CHARS))]
    found = {
        "space": matching(r"\s"),
        "word": matching(r"\w"),
        "regex_word": {ord(text[1]) for text in split if len(text) == 2 and text[0] == "a"} | {ord("a")},
        "punctuation": removed(pre.Punctuation("removed")),
        "numeric": matching_numeric(),
        "other": where(lambda c: not norm.BertNormalizer(True, False, False, False).normalize_str(c)) - {0, 0xFFFD},
        "mark": where(lambda c: not norm.StripAccents().normalize_str(c)),
    }
    if removed(pre.WhitespaceSplit()) != found["space"]:
        raise SystemExit("white space now differs between the library's parts: give each a flag of its own")
    accents = norm.BertNormalizer(False, False, True, False).normalize_str
    return found | {"nonspacing": where(lambda c: not accents(c))} | clusters()


def matching_numeric() -> set[int]:
    """What Rust calls numeric: what Digits puts into pieces of its own between letters."""
    pieces = pre.Digits(individual_digits=True).pre_tokenize_str("".join(f"a{c}" for c in CHARS))
    return {POINTS[begin // 2] for _, (begin, end) in pieces if begin % 2 == 1 and end == begin + 1}


def categories() -> dict[int, int]:
    """Code point -> place of its general category in CATEGORIES, as regular expressions see it."""
    known: dict[int, int] = {}
    any_run = pre.Split(Regex("|".join(rf"\p{{{name}}}+" for name in CATEGORIES)), "isolated")
    spans = [span for _, span in any_run.pre_tokenize_str("".join(CHARS))]
    firsts = [CHARS[begin] for begin, _ in spans]
    for place, name in enumerate(CATEGORIES):
        own = removed(pre.Split(Regex(rf"\p{{{name}}}"), "removed"), firsts)
        for first, (begin, end) in zip(firsts, spans, strict=True):
            if ord(first) in own:
                known |= dict.fromkeys(POINTS[begin:end], place)
    return known


def mappings(say: Say) -> dict[int, str]:
    """What becomes of every code point that `say` changes, Hangul syllables left out."""
    return {ord(c): said for c in CHARS if ord(c) not in HANGUL and (said := say(c)) != c}


def combining_classes(marks: Iterable[int]) -> dict[int, int]:
    """The canonical combining class of each mark, told by which reference mark it is sorted before."""
    order = norm.NFD().normalize_str
    references = {1: 0x334, 6: 0x16FF0, 7: 0x93C, 8: 0x3099, 9: 0x94D, 84: 0xC55, 91: 0xC56, 103: 0xE38, 107: 0xE48,
                  118: 0xEB8, 122: 0xEC8, 129: 0xF71, 130: 0xF72, 132: 0xF74, 202: 0x321, 214: 0x1DCE, 216: 0x31B,
                  218: 0x302A, 220: 0x316, 222: 0x59A, 224: 0x302E, 226: 0x1D16D, 228: 0x5AE, 230: 0x300, 232: 0x302C,
                  233: 0x35C, 234: 0x35D, 240: 0x345}  # fmt: skip
    references |= {10 + i: 0x5B0 + i for i in range(10)} | {19: 0x5B9, 20: 0x5BB, 21: 0x5BC, 22: 0x5BD, 23: 0x5BF}
    references |= {24: 0x5C1, 25: 0x5C2, 26: 0xFB1E} | {27 + i: 0x64B + i for i in range(8)} | {35: 0x670, 36: 0x711}
    references = {k: ref for k, ref in references.items() if k == 1 or order(f"{ref:c}\u0334") == f"\u0334{ref:c}"}
    known = {}
    for mark in marks:
        after = [k for k, ref in references.items() if order(chr(mark) + chr(ref)) != chr(mark) + chr(ref)]
        before = [k for k, ref in references.items() if order(chr(ref) + chr(mark)) != chr(ref) + chr(mark)]
        if after or before:
            equal = [k for k in references if k not in after and k not in before and (not after or k > max(after))]
            equal = [k for k in equal if not before or k < min(before)]
            if len(equal) != 1:
                raise SystemExit(f"U+{mark:04X} has a combining class that no reference mark has")
            known[mark] = equal[0]
    return known


def compositions(canonical: dict[int, str]) -> dict[tuple[int, int], int]:
    """Pairs that NFC joins."""
    compose = norm.NFC().normalize_str
    joined = {}
    for point, parts in canonical.items():
        first = compose(parts[:-1])
        if len(parts) > 1 and len(first) == 1 and compose(first + parts[-1]) == chr(point):
            joined[ord(first), ord(parts[-1])] = point
    return joined


def runs(values: Callable[[int], int]) -> list[tuple[int, int]]:
    """(first code point, value) of each run of equal values."""
    found: list[tuple[int, int]] = []
    for point in range(0x110000):
        value = values(point)
        if not found or found[-1][1] != value:
            found.append((point, value))
    return found


def array(kind: str, name: str, rows: Iterable[str]) -> str:
    """One C++ array."""
    text, line = f"constexpr {kind} {name}[] = {{\n", ""
    for row in rows:
        if len(line) + len(row) > 116:
            text, line = text + line.rstrip() + "\n", ""
        line += row + ", "
    return text + line.rstrip() + "\n};\n\n"


def mapping_arrays(name: str, table: dict[int, str]) -> str:
    """Keys, and where each one's replacement ends in a pool of code points."""
    pool, entries = "", []
    for point in sorted(table):
        pool += table[point]
        entries.append(f"{{{point:#x}, {len(pool)}}}")
    return array("Mapped", f"k{name}", entries) + array("char32_t", f"k{name}Pool", [f"{ord(c):#x}" for c in pool])


def tables() -> str:
    """The text of the generated file."""
    sets, kinds = flags(), categories()
    unassigned = CATEGORIES.index("Cn")

    def kind(point: int) -> int:
        value = kinds.get(point, unassigned)
        return value | sum(1 << (5 + i) for i, name in enumerate(FLAGS) if point in sets[name])

    canonical, compatible = mappings(norm.NFD().normalize_str), mappings(norm.NFKD().normalize_str)
    compatible = {p: text for p, text in compatible.items() if canonical.get(p) != text}
    classes = combining_classes((sets["mark"] | sets["nonspacing"] | sets["extends"]) - canonical.keys())
    pairs = sorted((a, b, c) for (a, b), c in compositions(canonical).items())
    return (
        f"// Written by tools/unicode_tables.py from tokenizers {tokenizers.__version__}: do not edit.\n\n"
        + array("Run", "kKinds", (f"{{{a:#x}, {b:#x}}}" for a, b in runs(kind)))
        + array("Run", "kClasses", (f"{{{a:#x}, {b}}}" for a, b in runs(lambda p: classes.get(p, 0))))
        + mapping_arrays("Lower", mappings(norm.Lowercase().normalize_str))
        + mapping_arrays("Canonical", canonical)
        + mapping_arrays("Compatible", compatible)
        + array("Pair", "kPairs", (f"{{{a:#x}, {b:#x}, {c:#x}}}" for a, b, c in pairs)).rstrip("\n")
        + "\n"
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(tables(), encoding="ascii")
