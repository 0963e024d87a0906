#include "split.h"

#include <utility>

namespace eecompile::tok {

namespace {

// Whether span i and the one before it are one piece.
bool joined(const std::vector<Span>& spans, std::size_t i, Delimiters delimiters) {
  switch (delimiters) {
    case Delimiters::kContiguous: return spans[i - 1].match == spans[i].match;
    case Delimiters::kMergedWithPrevious: return spans[i].match && !spans[i - 1].match;
    case Delimiters::kMergedWithNext: return spans[i - 1].match && !spans[i].match;
    default: return false;
  }
}

}  // namespace

Delimiters delimiters_from(const Field& field) {
  const std::string name = field.text();
  const std::pair<const char*, Delimiters> known[] = {{"Removed", Delimiters::kRemoved},
                                                      {"Isolated", Delimiters::kIsolated},
                                                      {"MergedWithPrevious", Delimiters::kMergedWithPrevious},
                                                      {"MergedWithNext", Delimiters::kMergedWithNext},
                                                      {"Contiguous", Delimiters::kContiguous}};
  for (const auto& [known_name, delimiters] : known) {
    if (name == known_name) return delimiters;
  }
  field.unsupported("the behaviour " + name + " is not supported");
  return Delimiters::kIsolated;
}

void add_split(const Text& text, const std::vector<Span>& spans, Delimiters delimiters, Pieces& pieces) {
  for (std::size_t i = 0; i < spans.size();) {
    const std::size_t begin = spans[i].begin;
    const bool dropped = spans[i].match && delimiters == Delimiters::kRemoved;
    std::size_t end = spans[i].end;
    for (++i; i < spans.size() && joined(spans, i, delimiters); ++i) end = spans[i].end;
    if (!dropped) add_piece(pieces, text.slice(begin, end));
  }
}

}  // namespace eecompile::tok
