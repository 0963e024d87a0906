// SentencePiece's visible mark for a space, as a pre-tokeniser and a decoder have it.
#pragma once

#include <string>

#include "field.h"
#include "text.h"

namespace eecompile::tok {

struct Metaspace {
  enum class Prepend { kAlways, kFirst, kNever };

  char32_t mark;
  Prepend prepend;
  bool split;
};

Metaspace metaspace_from(const Field& field);

// Spaces become the mark; one more is put before the text where the scheme says so and none is there.
void mark_spaces(Text& text, const Metaspace& meta);

}  // namespace eecompile::tok
