#include "pattern.h"

#include <algorithm>
#include <nlohmann/json.hpp>

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

bool match(const Rest* rest, std::string_view text, std::size_t at, std::size_t& end);

// As many as there are, then one less each time.
bool match_repeated(const Pattern::Item& item, const Rest& behind, std::string_view text, std::size_t at,
                    std::size_t& end) {
  std::size_t taken = 0;
  while (taken < item.most && at < text.size()) {
    const Decoded next = decode(text, at);
    if (!item.set.has(next.point)) break;
    at += next.size;
    ++taken;
  }
  for (; taken >= item.least; --taken) {
    if (match(&behind, text, at, end)) return true;
    if (taken == 0) break;
    at -= decode_before(text, at).size;
  }
  return false;
}

bool match(const Rest* rest, std::string_view text, std::size_t at, std::size_t& end) {
  while (rest != nullptr && rest->item == rest->sequence->size()) rest = rest->next;
  if (rest == nullptr) {
    end = at;
    return true;
  }
  const Pattern::Item& item = (*rest->sequence)[rest->item];
  const Rest behind{rest->sequence, rest->item + 1, rest->next};
  if (item.kind == Pattern::Kind::kRepeat) return match_repeated(item, behind, text, at, end);
  if (item.kind == Pattern::Kind::kGroup) {
    return std::any_of(item.alternatives.begin(), item.alternatives.end(), [&](const Pattern::Sequence& one) {
      const Rest inside{&one, 0, &behind};
      return match(&inside, text, at, end);
    });
  }
  const bool ahead = at < text.size() && item.set.has(decode(text, at).point);
  return ahead == (item.kind == Pattern::Kind::kAhead) && match(&behind, text, at, end);
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
  for (std::size_t at = 0, end = 0; at < text.size();) {
    bool matched = false;
    if (!literal_.empty()) {
      at = text.find(literal_, at);
      if (at == std::string_view::npos) break;
      matched = true;
      end = at + literal_.size();
    }
    for (std::size_t i = 0; !matched && i < alternatives_.size(); ++i) {
      const Rest whole{&alternatives_[i], 0, nullptr};
      matched = match(&whole, text, at, end);
    }
    if (matched) add(at, end);
    at = matched ? end : at + decode(text, at).size;
  }
  if (last < text.size()) found.push_back({last, text.size(), false});
  return found;
}

}  // namespace eecompile::tok
