#include "graphemes.h"

#include "unicode.h"
#include "utf8.h"

namespace eecompile::tok {

namespace {

constexpr char32_t kJoiner = 0x200D;

bool is_open_syllable(char32_t point) { return is_hangul_syllable(point) && (point - 0xAC00) % 28 == 0; }

// GB6 to GB8
bool is_hangul_pair(char32_t left, char32_t right) {
  if (is(left, kHangulL)) return is(right, kHangulL) || is(right, kHangulV) || is_hangul_syllable(right);
  if (is(left, kHangulV) || is_open_syllable(left)) return is(right, kHangulV) || is(right, kHangulT);
  return (is(left, kHangulT) || is_hangul_syllable(left)) && is(right, kHangulT);
}

// What the rules ask of the characters before a place.
struct Seen {
  bool emoji = false, emoji_joined = false;        // GB11: a pictograph and what extends it; behind it a joiner
  bool consonant = false, consonant_linked = false;  // GB9c

  void add(char32_t point) {
    emoji_joined = emoji && point == kJoiner;
    emoji = is(point, kPictographic) || (emoji && is(point, kExtendsEmoji));
    const bool links = is(point, kLinker);
    consonant_linked = consonant && (links || (consonant_linked && is(point, kExtendsConjunct)));
    consonant = is(point, kConsonant) || (consonant && (links || is(point, kExtendsConjunct)));
  }
};

bool is_joined(char32_t left, char32_t right, const Seen& seen) {
  if (left == U'\r' && right == U'\n') return true;
  if (is(left, kBreaks) || is(right, kBreaks)) return false;
  if (is(right, kExtends) || is(left, kPrepends) || is_hangul_pair(left, right)) return true;
  return (seen.emoji_joined && is(right, kPictographic)) || (seen.consonant_linked && is(right, kConsonant));
}

}  // namespace

std::size_t cluster_end(std::string_view text, std::size_t at) {
  Decoded left = decode(text, at);
  Seen seen;
  seen.add(left.point);
  for (at += left.size; at < text.size(); at += left.size) {
    const Decoded right = decode(text, at);
    if (!is_joined(left.point, right.point, seen)) break;
    seen.add(right.point);
    left = right;
  }
  return at;
}

}  // namespace eecompile::tok
