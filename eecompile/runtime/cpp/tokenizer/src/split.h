// Cutting a text at what a pattern matches.
#pragma once

#include <vector>

#include "field.h"
#include "pattern.h"
#include "text.h"

namespace eecompile::tok {

// What becomes of the matches.
enum class Delimiters { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

Delimiters delimiters_from(const Field& field);

// Adds the pieces of `text`. A match that is merged joins the span before (behind) it unless that is a match, too;
// contiguous ones become one.
void add_split(const Text& text, const std::vector<Span>& spans, Delimiters delimiters, Pieces& pieces);

// Spans of one character each where `matches(point)`, and of what lies between them.
template <typename Matches>
std::vector<Span> spans_where(std::string_view text, Matches&& matches) {
  std::vector<Span> spans;
  std::size_t last = 0;
  for (std::size_t at = 0; at < text.size();) {
    const Decoded next = decode(text, at);
    if (matches(next.point)) {
      if (last < at) spans.push_back({last, at, false});
      last = at + next.size;
      spans.push_back({at, last, true});
    }
    at += next.size;
  }
  if (last < text.size()) spans.push_back({last, text.size(), false});
  return spans;
}

}  // namespace eecompile::tok
