// A piece of the input on its way to tokens.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "utf8.h"

namespace eecompile::tok {

// Bytes [begin, end) of the input.
struct Origin {
  std::size_t begin, end;
};

// Valid UTF-8 and where it came from: Metaspace's scheme "first" puts its mark where the input begins, and spans of
// tokens are asked for at times.
struct Text {
  std::string bytes;
  std::size_t from_start = 0;  // that many leading bytes come from the input's first character
  bool at_start = false;       // the text as a whole begins where the input does
  std::vector<Origin> origins = {};  // of each byte, that of its character; none where nobody asks

  static Text whole(std::string valid, bool tracked = false);

  Text slice(std::size_t begin, std::size_t end) const;
  void prepend(std::string_view prefix);
};

// Writes what `old` becomes, in order.
class Rewriter {
 public:
  explicit Rewriter(const Text& old) : old_(old) {
    made_.at_start = old.at_start;
    made_.bytes.reserve(old.bytes.size());
  }

  // `point` in place of, or added behind, the character at byte `source` of the old text.
  void put(char32_t point, std::size_t source) {
    append(made_.bytes, point);
    note(source);
  }

  void put(std::string_view text, std::size_t source) {
    made_.bytes.append(text);
    note(source);
  }

  Text done() { return std::move(made_); }

 private:
  // What was put last comes from the old text's byte `source`.
  void note(std::size_t source) {
    if (source < old_.from_start) made_.from_start = made_.bytes.size();
    if (!old_.origins.empty())
      made_.origins.resize(made_.bytes.size(), old_.origins[std::min(source, old_.origins.size() - 1)]);
  }

  const Text& old_;
  Text made_;
};

// Calls `use(point, byte position)` for every character.
template <typename Use>
void for_each_point(std::string_view text, Use&& use) {
  for (std::size_t at = 0; at < text.size();) {
    const Decoded next = decode(text, at);
    use(next.point, at);
    at += next.size;
  }
}

struct Piece {
  Text text;
  std::int64_t id = -1;  // of an added token, which the text reads; -1: still to be tokenized
};

using Pieces = std::vector<Piece>;

// Every piece that is still to be tokenized replaced by what `split(Text&&, Pieces& out)` adds; empty ones dropped.
template <typename Split>
void split_pieces(Pieces& pieces, Split&& split) {
  Pieces made;
  made.reserve(pieces.size());
  for (Piece& piece : pieces) {
    if (piece.id >= 0) {
      made.push_back(std::move(piece));
    } else {
      split(std::move(piece.text), made);
    }
  }
  pieces = std::move(made);
}

inline void add_piece(Pieces& pieces, Text text) {
  if (!text.bytes.empty()) pieces.push_back({std::move(text), -1});
}

}  // namespace eecompile::tok
