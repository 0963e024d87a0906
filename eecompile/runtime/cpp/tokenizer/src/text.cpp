#include "text.h"

#include <algorithm>
#include <utility>

namespace eecompile::tok {

Text Text::whole(std::string valid) {
  Text text{std::move(valid), 0, true};
  if (!text.bytes.empty()) text.from_start = decode(text.bytes, 0).size;
  return text;
}

Text Text::slice(std::size_t begin, std::size_t end) const {
  const bool first = at_start && begin < from_start;
  return {bytes.substr(begin, end - begin), first ? std::min(from_start, end) - begin : 0, first};
}

void Text::prepend(std::string_view prefix) {
  bytes.insert(0, prefix);
  if (from_start > 0) from_start += prefix.size();
}

}  // namespace eecompile::tok
