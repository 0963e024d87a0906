// From the text of a regular expression to the alternatives of pattern.h.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "field.h"
#include "pattern.h"
#include "utf8.h"

namespace eecompile::tok {

class PatternParser {
 public:
  // `field`: where a pattern that is none of the subset is a fault.
  PatternParser(const Field& field, std::string_view pattern) : field_(field), pattern_(points(pattern)) {}

  // Alternatives, each of at least one character.
  std::vector<Pattern::Sequence> parse();

 private:
  using Sequences = std::vector<Pattern::Sequence>;

  bool more() const { return at_ < pattern_.size() && !failed_; }
  char32_t peek(std::size_t ahead = 0) const { return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : 0; }
  bool take(const char* expected);  // ASCII
  void refuse(const std::string& what);

  Sequences alternatives(bool ignore_case);
  Pattern::Sequence sequence(bool ignore_case);
  Pattern::Item group(bool ignore_case);
  Pattern::Item single(bool ignore_case);
  Pattern::Item look_ahead(Pattern::Kind kind);
  CharSet char_class();
  void class_member(CharSet& set);
  void escape(CharSet& set);
  bool char_escape(char32_t& point);
  void category(CharSet& set, bool inverted);
  void quantify(Pattern::Item& item);
  std::size_t number();

  Field field_;
  std::u32string pattern_;
  std::size_t at_ = 0, depth_ = 0, items_ = 0;
  bool failed_ = false;
};

}  // namespace eecompile::tok
