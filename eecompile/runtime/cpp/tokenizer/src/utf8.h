// UTF-8, forwards and backwards. `lossy` makes any bytes valid; everything else expects valid UTF-8.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace eecompile::tok {

struct Scanned {
  std::size_t size;  // bytes of a character, or of the longest beginning of one (>= 1)
  bool valid;        // a whole character
  bool cut;          // not whole, because the bytes end
};

// What stands at `at` < bytes.size().
Scanned scan(std::string_view bytes, std::size_t at);

// `bytes` with U+FFFD for each longest beginning of a character that does not go on as UTF-8 has to: what Rust's
// from_utf8_lossy and Python's errors="replace" do (The Unicode Standard 3.9, "maximal subpart").
std::string lossy(std::string_view bytes);

struct Decoded {
  char32_t point;
  std::size_t size;
};

// The character at byte `at` < text.size().
Decoded decode(std::string_view text, std::size_t at);

// The character that ends at byte `end` > 0.
Decoded decode_before(std::string_view text, std::size_t end);

void append(std::string& text, char32_t point);

std::u32string points(std::string_view text);

}  // namespace eecompile::tok
