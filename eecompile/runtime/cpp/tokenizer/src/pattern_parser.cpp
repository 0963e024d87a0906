#include "pattern_parser.h"

#include <algorithm>
#include <limits>
#include <string_view>

#include "utf8.h"

namespace eecompile::tok {

namespace {

constexpr std::size_t kDeepestGroup = 16;
constexpr std::size_t kMostItems = 1000;  // of a pattern: matching one calls itself for the next, and the stack is finite
constexpr std::size_t kMostShown = 200;   // characters in an error

std::string shown(const std::u32string& text) {
  std::string utf8;
  for (const char32_t point : text.substr(0, kMostShown)) append(utf8, point);
  return text.size() > kMostShown ? utf8 + ".." : utf8;
}

bool is_letter(char32_t point) { return (point | 32) >= U'a' && (point | 32) <= U'z'; }

// The fewest characters that a sequence matches.
std::size_t fewest(const Pattern::Sequence& sequence) {
  std::size_t least = 0;
  for (const Pattern::Item& item : sequence) {
    if (item.kind == Pattern::Kind::kRepeat) least += item.least;
    if (item.kind != Pattern::Kind::kGroup) continue;
    std::size_t inside = std::numeric_limits<std::size_t>::max();
    for (const Pattern::Sequence& one : item.alternatives) inside = std::min(inside, fewest(one));
    least += inside;
  }
  return least;
}

// Pairs that a case-insensitive engine also finds in one character (German sharp s, ligatures).
bool folds_together(char32_t first, char32_t second) {
  const std::string pair{static_cast<char>(first | 32), static_cast<char>(second | 32)};
  return pair == "ss" || pair == "st" || pair == "ff" || pair == "fi" || pair == "fl";
}

}  // namespace

bool PatternParser::take(const char* expected) {
  std::size_t size = 0;
  for (; expected[size] != 0; ++size) {
    if (peek(size) != static_cast<unsigned char>(expected[size])) return false;
  }
  at_ += size;
  return true;
}

void PatternParser::refuse(const std::string& what) {
  if (!failed_) field_.unsupported("the pattern " + shown(pattern_) + " holds " + what + ", which is not supported");
  failed_ = true;
}

std::vector<Pattern::Sequence> PatternParser::parse() {
  Sequences found = alternatives(false);
  if (at_ < pattern_.size()) refuse("a ) that closes nothing");
  for (const Pattern::Sequence& sequence : found) {
    if (fewest(sequence) == 0) refuse("an alternative that matches nothing");
  }
  return failed_ ? Sequences{} : found;
}

PatternParser::Sequences PatternParser::alternatives(bool ignore_case) {
  Sequences all;
  if (++depth_ > kDeepestGroup) refuse("groups that are nested too deep");
  do {
    all.push_back(sequence(ignore_case));
  } while (!failed_ && take("|"));
  --depth_;
  return all;
}

Pattern::Sequence PatternParser::sequence(bool ignore_case) {
  Pattern::Sequence all;
  while (more() && peek() != U'|' && peek() != U')') {
    if (++items_ > kMostItems) refuse("more than " + std::to_string(kMostItems) + " parts");
    if (take("(?!")) {
      all.push_back(look_ahead(Pattern::Kind::kNotAhead));
    } else if (take("(?=")) {
      all.push_back(look_ahead(Pattern::Kind::kAhead));
    } else if (take("(")) {
      all.push_back(group(ignore_case));
    } else {
      all.push_back(single(ignore_case));
      quantify(all.back());
    }
  }
  return all;
}

Pattern::Item PatternParser::group(bool ignore_case) {
  if (take("?i:")) {
    ignore_case = true;
  } else if (!take("?:") && peek() == U'?') {
    refuse("a group of an unknown kind");
  }
  Pattern::Item item{Pattern::Kind::kGroup, {}, 1, 1, alternatives(ignore_case)};
  if (!take(")")) refuse("a group that does not end");
  if (take("?")) item.alternatives.emplace_back();  // nothing, as a last resort
  if (more() && (peek() == U'*' || peek() == U'+' || peek() == U'{' || peek() == U'?')) refuse("a repeated group");
  return item;
}

Pattern::Item PatternParser::look_ahead(Pattern::Kind kind) {
  Pattern::Item item = single(false);
  item.kind = kind;
  if (!take(")")) refuse("a look-ahead of more than one character");
  return item;
}

Pattern::Item PatternParser::single(bool ignore_case) {
  Pattern::Item item{Pattern::Kind::kRepeat, {}, 1, 1, {}};
  const char32_t point = peek();
  if (ignore_case && point != U'\'' && !is_letter(point)) refuse("(?i:..) of more than ASCII letters and '");
  if (take("[")) {
    item.set = char_class();
  } else if (take("\\")) {
    escape(item.set);
  } else if (take(".")) {
    item.set.add_range(U'\n', U'\n');
    item.set.invert();
  } else if (std::u32string_view(U"*+?{^$").find(point) != std::u32string_view::npos) {
    refuse("a " + shown({point}) + " in an unknown place");
  } else {
    ++at_;
    item.set.add_range(point, point);
    if (ignore_case && is_letter(point)) {
      item.set.add_range(point ^ 32, point ^ 32);
      if ((point | 32) == U's') item.set.add_range(0x17F, 0x17F);
      if ((point | 32) == U'k') item.set.add_range(0x212A, 0x212A);
      if (is_letter(peek()) && folds_together(point, peek())) refuse("(?i:..) of letters that fold into one");
    }
  }
  return item;
}

CharSet PatternParser::char_class() {
  CharSet set;
  const bool inverted = take("^");
  if (peek() == U']') refuse("an empty class");
  while (more() && peek() != U']') class_member(set);
  if (!take("]")) refuse("a class that does not end");
  if (inverted) set.invert();
  return set;
}

void PatternParser::class_member(CharSet& set) {
  if (peek() == U'[' || (peek() == U'&' && peek(1) == U'&')) return refuse("a class within a class");
  char32_t low = peek();
  if (take("\\")) {
    if (!char_escape(low)) return escape(set);
  } else {
    ++at_;
  }
  char32_t high = low;
  if (peek() == U'-' && peek(1) != U']' && peek(1) != 0) {
    ++at_;
    high = peek();
    if (take("\\")) {
      if (!char_escape(high)) refuse("a range that ends in a class");
    } else {
      ++at_;
    }
    if (high < low) refuse("a range from high to low");
  }
  set.add_range(low, high);
}

// Behind a backslash: one character.
bool PatternParser::char_escape(char32_t& point) {
  const std::u32string_view letters = U"rntfv", meant = U"\r\n\t\f\v";
  const std::size_t place = letters.find(peek());
  const bool is_sign = peek() < 128 && !is_letter(peek()) && (peek() < U'0' || peek() > U'9');
  if (!more() || (place == std::u32string_view::npos && !is_sign)) return false;
  point = place == std::u32string_view::npos ? peek() : meant[place];
  ++at_;
  return true;
}

// Behind a backslash: one character or a class.
void PatternParser::escape(CharSet& set) {
  char32_t point = 0;
  if (char_escape(point)) return set.add_range(point, point);
  if (take("s")) return set.add_flag(kSpace, false);
  if (take("S")) return set.add_flag(kSpace, true);
  if (take("w")) return set.add_flag(kWord, false);
  if (take("W")) return set.add_flag(kWord, true);
  if (take("d")) return set.add_categories(1u << kNd, false);
  if (take("D")) return set.add_categories(1u << kNd, true);
  if (take("p{")) return category(set, false);
  if (take("P{")) return category(set, true);
  refuse("\\" + shown({peek()}));
}

void PatternParser::category(CharSet& set, bool inverted) {
  static constexpr std::string_view kNames = "LuLlLtLmLoMnMcMeNdNlNoPcPdPsPePiPfPoSmScSkSoZsZlZpCcCfCoCn";
  std::string name;
  while (more() && peek() != U'}') name += shown({pattern_[at_++]});
  std::uint32_t mask = 0;
  for (std::size_t i = 0; i < kNames.size() / 2; ++i) {
    const std::string_view other = kNames.substr(2 * i, 2);
    if (name == other || (name.size() == 1 && name[0] == other[0])) mask |= 1u << i;
  }
  if (mask == 0 || !take("}")) refuse("the property " + name);
  set.add_categories(mask, inverted);
}

void PatternParser::quantify(Pattern::Item& item) {
  constexpr std::size_t kMany = std::numeric_limits<std::size_t>::max();
  if (take("?")) {
    item.least = 0;
  } else if (take("*")) {
    item.least = 0, item.most = kMany;
  } else if (take("+")) {
    item.most = kMany;
  } else if (take("{")) {
    item.least = number();
    item.most = item.least;
    if (take(",")) item.most = peek() == U'}' ? kMany : number();
    if (!take("}") || item.most < item.least || item.most == 0) refuse("a { in an unknown place");
  } else {
    return;
  }
  if (peek() == U'?' || peek() == U'+' || peek() == U'*' || peek() == U'{') refuse("a lazy or possessive repetition");
}

std::size_t PatternParser::number() {
  std::size_t value = 0;
  if (peek() < U'0' || peek() > U'9') refuse("a { in an unknown place");
  while (more() && peek() >= U'0' && peek() <= U'9' && value < 10000) value = value * 10 + (pattern_[at_++] - U'0');
  return value;
}

}  // namespace eecompile::tok
