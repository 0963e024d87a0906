#include "text.h"

#include <algorithm>
#include <utility>

namespace eecompile::tok {

Text Text::whole(std::string valid, bool tracked) {
  Text text{std::move(valid), 0, true};
  if (!text.bytes.empty()) text.from_start = decode(text.bytes, 0).size;
  if (tracked) {
    for_each_point(text.bytes, [&](char32_t, std::size_t at) {
      const Origin whole{at, at + decode(text.bytes, at).size};
      text.origins.resize(whole.end, whole);
    });
  }
  return text;
}

Text Text::slice(std::size_t begin, std::size_t end) const {
  const bool first = at_start && begin < from_start;
  Text part{bytes.substr(begin, end - begin), first ? std::min(from_start, end) - begin : 0, first};
  if (!origins.empty()) {
    part.origins.assign(origins.begin() + static_cast<std::ptrdiff_t>(begin),
                        origins.begin() + static_cast<std::ptrdiff_t>(end));
  }
  return part;
}

void Text::prepend(std::string_view prefix) {
  bytes.insert(0, prefix);
  if (from_start > 0) from_start += prefix.size();
  if (!origins.empty()) origins.insert(origins.begin(), prefix.size(), origins.front());
}

}  // namespace eecompile::tok
