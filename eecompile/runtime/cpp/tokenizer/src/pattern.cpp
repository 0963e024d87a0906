#include "pattern.h"

#include <nlohmann/json.hpp>

#include "pattern_parser.h"
#include "utf8.h"

namespace eecompile::tok {

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

bool Pattern::match(const Sequence& sequence, std::size_t index, std::string_view text, std::size_t at,
                    std::size_t& end) const {
  if (index == sequence.size()) {
    end = at;
    return true;
  }
  const Item& item = sequence[index];
  if (item.kind != Kind::kRepeat) {
    const bool ahead = at < text.size() && item.set.has(decode(text, at).point);
    return ahead == (item.kind == Kind::kAhead) && match(sequence, index + 1, text, at, end);
  }
  std::size_t taken = 0, here = at;
  while (taken < item.most && here < text.size()) {
    const Decoded next = decode(text, here);
    if (!item.set.has(next.point)) break;
    here += next.size;
    ++taken;
  }
  while (taken >= item.least) {
    if (match(sequence, index + 1, text, here, end)) return true;
    if (taken-- == 0) break;
    here -= decode_before(text, here).size;
  }
  return false;
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
      matched = match(alternatives_[i], 0, text, at, end);
    }
    if (matched) add(at, end);
    at = matched ? end : at + decode(text, at).size;
  }
  if (last < text.size()) found.push_back({last, text.size(), false});
  return found;
}

}  // namespace eecompile::tok
