#include "forms.h"

#include <algorithm>
#include <string>
#include <vector>

#include "unicode.h"

namespace eecompile::tok {

namespace {

// A character and how many more there are with it than before: 1, it was added; -1, it took the place of two.
struct Sourced {
  char32_t point;
  int change;
};

using Points = std::vector<Sourced>;

Points decomposed(const std::string& text, bool compatible) {
  Points all;
  std::u32string parts;
  for_each_point(text, [&](char32_t point, std::size_t) {
    parts.clear();
    append_decomposed(parts, point, compatible);
    for (std::size_t i = 0; i < parts.size(); ++i) all.push_back({parts[i], i == 0 ? 0 : 1});
  });
  return all;
}

// Canonical order: marks between starters by their class, equals as they stand.
void sort_marks(Points& all) {
  const auto is_mark = [](const Sourced& one) { return combining_class(one.point) != 0; };
  const auto by_class = [](const Sourced& a, const Sourced& b) {
    return combining_class(a.point) < combining_class(b.point);
  };
  for (auto begin = std::find_if(all.begin(), all.end(), is_mark); begin != all.end();) {
    const auto end = std::find_if_not(begin, all.end(), is_mark);
    std::stable_sort(begin, end, by_class);
    begin = std::find_if(end, all.end(), is_mark);
  }
}

Points composed_points(const Points& parts) {
  Points all;
  std::size_t starter = parts.size();  // place in `all` of the last starter; beyond: none
  unsigned last = 0;                   // class of what stands last behind it
  for (const Sourced& part : parts) {
    const unsigned own = combining_class(part.point);
    const bool open = starter < all.size() && (starter + 1 == all.size() || (last != 0 && last < own));
    const char32_t joined = open ? composed(all[starter].point, part.point) : 0;
    if (joined != 0) {
      all[starter].point = joined;
      all[starter].change += part.change - 1;
      continue;
    }
    if (own == 0) starter = all.size();
    last = own;
    all.push_back(part);
  }
  return all;
}

bool is_ascii(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](char byte) { return static_cast<unsigned char>(byte) < 0x80; });
}

}  // namespace

void normalize_form(Text& text, bool compatible, bool compose) {
  if (is_ascii(text.bytes)) return;
  Points all = decomposed(text.bytes, compatible);
  sort_marks(all);
  if (compose) all = composed_points(all);
  Rewriter out(text);
  std::size_t next = 0;  // the old text's byte whose turn it is: the library counts, whatever marks changed places
  for (const Sourced& one : all) {
    const bool added = one.change > 0;
    out.put(one.point, added && next > 0 ? next - 1 : next);
    for (int i = one.change; i <= 0 && next < text.bytes.size(); ++i) next += decode(text.bytes, next).size;
  }
  text = out.done();
}

}  // namespace eecompile::tok
