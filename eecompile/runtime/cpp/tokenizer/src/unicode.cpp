#include "unicode.h"

#include <algorithm>
#include <array>
#include <iterator>

namespace eecompile::tok {

namespace {

struct Run {
  std::uint32_t begin, value;
};

struct Mapped {
  std::uint32_t point, end;  // of its replacement in the pool, which begins where the one before ends
};

struct Pair {
  std::uint32_t first, second, composed;
};

#include "unicode_tables.inc"

template <std::size_t N>
std::uint32_t value_at(const Run (&runs)[N], char32_t point) {
  const auto after = [](char32_t wanted, const Run& run) { return wanted < run.begin; };
  return std::prev(std::upper_bound(std::begin(runs), std::end(runs), point, after))->value;
}

// Appends what `point` becomes; false where it stays as it is.
template <std::size_t N, std::size_t M>
bool append_mapped(std::u32string& text, const Mapped (&table)[N], const char32_t (&pool)[M], char32_t point) {
  const auto before = [](const Mapped& entry, char32_t wanted) { return entry.point < wanted; };
  const auto* entry = std::lower_bound(std::begin(table), std::end(table), point, before);
  if (entry == std::end(table) || entry->point != point) return false;
  text.append(pool + (entry == std::begin(table) ? 0 : std::prev(entry)->end), pool + entry->end);
  return true;
}

std::array<std::uint32_t, 128> ascii_kinds() {
  std::array<std::uint32_t, 128> kinds{};
  for (char32_t point = 0; point < 128; ++point) kinds[point] = value_at(kKinds, point);
  return kinds;
}

// The Unicode Standard 3.12: Hangul syllables are computed.
constexpr char32_t kSyllable = 0xAC00, kL = 0x1100, kV = 0x1161, kT = 0x11A7;
constexpr char32_t kLs = 19, kVs = 21, kTs = 28;

void append_jamo(std::u32string& text, char32_t syllable) {
  const char32_t index = syllable - kSyllable;
  text.push_back(kL + index / (kVs * kTs));
  text.push_back(kV + index / kTs % kVs);
  if (index % kTs != 0) text.push_back(kT + index % kTs);
}

char32_t composed_jamo(char32_t first, char32_t second) {
  if (first >= kL && first < kL + kLs && second >= kV && second < kV + kVs) {
    return kSyllable + ((first - kL) * kVs + (second - kV)) * kTs;
  }
  const bool open = is_hangul_syllable(first) && (first - kSyllable) % kTs == 0;
  return open && second > kT && second < kT + kTs ? first + (second - kT) : 0;
}

}  // namespace

std::uint32_t kind(char32_t point) {
  static const std::array<std::uint32_t, 128> ascii = ascii_kinds();
  return point < 128 ? ascii[point] : value_at(kKinds, point);
}

void append_lower(std::u32string& text, char32_t point) {
  if (point < 128) {
    text.push_back(point >= U'A' && point <= U'Z' ? point + 32 : point);
  } else if (!append_mapped(text, kLower, kLowerPool, point)) {
    text.push_back(point);
  }
}

void append_decomposed(std::u32string& text, char32_t point, bool compatible) {
  if (point < 128) return text.push_back(point);
  if (is_hangul_syllable(point)) return append_jamo(text, point);
  if (compatible && append_mapped(text, kCompatible, kCompatiblePool, point)) return;
  if (!append_mapped(text, kCanonical, kCanonicalPool, point)) text.push_back(point);
}

unsigned combining_class(char32_t point) { return point < 0x300 ? 0 : value_at(kClasses, point); }

char32_t composed(char32_t first, char32_t second) {
  if (const char32_t syllable = composed_jamo(first, second)) return syllable;
  const auto before = [](const Pair& pair, const Pair& wanted) {
    return pair.first != wanted.first ? pair.first < wanted.first : pair.second < wanted.second;
  };
  const Pair wanted{first, second, 0};
  const auto* pair = std::lower_bound(std::begin(kPairs), std::end(kPairs), wanted, before);
  return pair != std::end(kPairs) && pair->first == first && pair->second == second ? pair->composed : 0;
}

}  // namespace eecompile::tok
