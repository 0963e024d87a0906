// Regular expressions of tokenizer.json, in the subset that tokenizers use: alternatives of characters, classes with
// \p{..}, greedy ? * + {m,n} of one character or class, groups (optional ones too), (?i:..) of ASCII words, look-ahead
// for one character. Everything else is refused, naming what it is.
//
// A match tries things in the order of a backtracking engine. Only single characters are repeated, so that its stack is
// as deep as the pattern is long, never as the text. Cost: linear in the text for the patterns of known models
// (tests/cpp/test_tokenizer.py times them); a pattern that looks far ahead in vain from every place can take the square
// of its longest run.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "field.h"
#include "unicode.h"

namespace eecompile::tok {

struct Span {
  std::size_t begin, end;
  bool match;
};

// A set of characters.
class CharSet {
 public:
  void add_range(char32_t low, char32_t high) { terms_.push_back({low, high, 0, 0, false}); }
  void add_categories(std::uint32_t mask, bool inverted) { terms_.push_back({1, 0, mask, 0, inverted}); }
  void add_flag(Flag flag, bool inverted) { terms_.push_back({1, 0, 0, flag, inverted}); }
  void invert() { inverted_ = !inverted_; }

  bool has(char32_t point) const;

 private:
  struct Term {
    char32_t low, high;
    std::uint32_t categories, flag;
    bool inverted;
  };
  std::vector<Term> terms_;
  bool inverted_ = false;
};

class Pattern {
 public:
  // {"Regex": ..} or {"String": ..} of the file.
  static Pattern from(const Field& field);

  // A regular expression that is known to be of the subset.
  static Pattern known(std::string_view regex);

  // The whole text cut into matches and what lies between them, in order; no empty spans but for an empty text.
  std::vector<Span> spans(std::string_view text) const;

  enum class Kind { kRepeat, kAhead, kNotAhead, kGroup };

  struct Item;
  using Sequence = std::vector<Item>;

  struct Item {
    Kind kind;
    CharSet set;
    std::size_t least = 1, most = 1;     // kRepeat
    std::vector<Sequence> alternatives;  // kGroup
  };

 private:
  std::string literal_;  // where it is not empty, the pattern is this text
  std::vector<Sequence> alternatives_;
};

}  // namespace eecompile::tok
