#include "pattern.h"

#include <algorithm>

#include "pattern_parser.h"
#include "utf8.h"

namespace eecompile::tok {

namespace {

// What is to be matched behind a group.
struct Rest {
  const Pattern::Sequence* sequence;
  std::size_t item;
  const Rest* next;
};

// A text that is looked through. Patterns of real tokenizers take a few steps for each byte; one made to go back and forth
// without end finds nothing more once its steps are spent.
struct Search {
  std::string_view text;
  std::size_t end = 0;  // of what matched
  std::size_t steps = kSteps + kStepsOfByte * text.size();

  bool spend(std::size_t count) {
    steps -= std::min(steps, count);
    return steps > 0;
  }

 private:
  static constexpr std::size_t kSteps = 1'000'000, kStepsOfByte = 100;
};

bool match(const Rest* rest, Search& search, std::size_t at);

// As many as there are, then one less each time.
bool match_repeated(const Pattern::Item& item, const Rest& behind, Search& search, std::size_t at) {
  std::size_t taken = 0;
  while (taken < item.most && at < search.text.size()) {
    const Decoded next = decode(search.text, at);
    if (!item.set.has(next.point)) break;
    at += next.size;
    ++taken;
  }
  if (!search.spend(taken)) return false;
  for (; taken >= item.least; --taken) {
    if (match(&behind, search, at)) return true;
    if (taken == 0) break;
    at -= decode_before(search.text, at).size;
  }
  return false;
}

bool match(const Rest* rest, Search& search, std::size_t at) {
  while (rest != nullptr && rest->item == rest->sequence->size()) rest = rest->next;
  if (rest == nullptr) {
    search.end = at;
    return true;
  }
  if (!search.spend(1)) return false;
  const Pattern::Item& item = (*rest->sequence)[rest->item];
  const Rest behind{rest->sequence, rest->item + 1, rest->next};
  if (item.kind == Pattern::Kind::kRepeat) return match_repeated(item, behind, search, at);
  if (item.kind == Pattern::Kind::kGroup) {
    return std::any_of(item.alternatives.begin(), item.alternatives.end(), [&](const Pattern::Sequence& one) {
      const Rest inside{&one, 0, &behind};
      return match(&inside, search, at);
    });
  }
  const bool ahead = at < search.text.size() && item.set.has(decode(search.text, at).point);
  return ahead == (item.kind == Pattern::Kind::kAhead) && match(&behind, search, at);
}

}  // namespace

bool CharSet::has(char32_t point) const {
  const std::uint32_t bits = kind(point);
  for (const Term& term : terms_) {
    const bool inside = (point >= term.low && point <= term.high) || (term.categories >> (bits & 31u) & 1u) != 0 ||
                        (bits & term.flag) != 0;
    if (inside != term.inverted) return !inverted_;
  }
  return inverted_;
}

Pattern Pattern::from(const Field& field) {
  Pattern pattern;
  if (field.has("String")) {
    pattern.literal_ = field.at("String").text();
    if (pattern.literal_.empty()) field.unsupported("an empty pattern is not supported");
  } else {
    pattern.alternatives_ = PatternParser(field.at("Regex"), field.at("Regex").text()).parse();
  }
  return pattern;
}

Pattern Pattern::known(std::string_view regex) {
  const Json nothing;
  Faults none;
  Pattern pattern;
  pattern.alternatives_ = PatternParser({nothing, "", none}, regex).parse();
  return pattern;
}

std::vector<Span> Pattern::spans(std::string_view text) const {
  std::vector<Span> found;
  if (text.empty()) return {{0, 0, false}};
  std::size_t last = 0;
  const auto add = [&](std::size_t begin, std::size_t end) {
    if (last < begin) found.push_back({last, begin, false});
    found.push_back({begin, end, true});
    last = end;
  };
  Search search{text};
  for (std::size_t at = 0; at < text.size() && search.steps > 0;) {
    bool matched = false;
    if (!literal_.empty()) {
      at = text.find(literal_, at);
      if (at == std::string_view::npos) break;
      matched = true;
      search.end = at + literal_.size();
    }
    for (std::size_t i = 0; !matched && i < alternatives_.size(); ++i) {
      const Rest whole{&alternatives_[i], 0, nullptr};
      matched = match(&whole, search, at);
    }
    if (matched) add(at, search.end);
    at = matched ? search.end : at + decode(text, at).size;
  }
  if (last < text.size()) found.push_back({last, text.size(), false});
  return found;
}

}  // namespace eecompile::tok
