// What characters are, as the `tokenizers` library sees them: tools/unicode_tables.py says why it is not one Unicode.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace eecompile::tok {

// General categories of the library's regular expressions, as a mask: bit 0 is Lu. The order is the generator's.
enum Category : std::uint32_t {
  kLu, kLl, kLt, kLm, kLo, kMn, kMc, kMe, kNd, kNl, kNo, kPc, kPd, kPs, kPe, kPi, kPf, kPo,
  kSm, kSc, kSk, kSo, kZs, kZl, kZp, kCc, kCf, kCo, kCn
};

// Bits above the category. The order is the generator's.
enum Flag : std::uint32_t {
  kSpace = 1u << 5,        // White_Space
  kWord = 1u << 6,         // \w of patterns in tokenizer.json
  kRegexWord = 1u << 7,    // \w of the Whitespace pre-tokeniser and of single_word
  kPunctuation = 1u << 8,  // of the BERT and Punctuation pre-tokenisers
  kNumeric = 1u << 9,      // of Digits
  kOther = 1u << 10,       // controls and the like, which BertNormalizer removes
  kNonspacing = 1u << 11,  // marks that BertNormalizer strips; told only of characters that NFD leaves alone
  kMark = 1u << 12,        // marks that StripAccents strips
  kExtends = 1u << 13,     // grapheme clusters (UAX 29): Extend, ZWJ, SpacingMark
  kPrepends = 1u << 14,
  kBreaks = 1u << 15,      // Control, CR, LF
  kPictographic = 1u << 16,
  kExtendsEmoji = 1u << 17,  // Extend, ZWJ
  kConsonant = 1u << 18,
  kLinker = 1u << 19,
  kExtendsConjunct = 1u << 20,
  kHangulL = 1u << 21,
  kHangulV = 1u << 22,
  kHangulT = 1u << 23,
};

// The category in the low five bits, flags above. Cost: a table look-up for ASCII, else a binary search.
std::uint32_t kind(char32_t point);

inline bool is(char32_t point, Flag flag) { return (kind(point) & flag) != 0; }
inline std::uint32_t category_bit(char32_t point) { return 1u << (kind(point) & 31u); }

void append_lower(std::u32string& text, char32_t point);

// Canonical (NFD) or compatible (NFKD) decomposition, not yet in canonical order.
void append_decomposed(std::u32string& text, char32_t point, bool compatible);

unsigned combining_class(char32_t point);

// The character that two become in NFC, or 0.
char32_t composed(char32_t first, char32_t second);

inline bool is_hangul_syllable(char32_t point) { return point >= 0xAC00 && point < 0xAC00 + 11172; }

}  // namespace eecompile::tok
