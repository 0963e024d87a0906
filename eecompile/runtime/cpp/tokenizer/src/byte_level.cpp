#include "byte_level.h"

#include <array>

#include "utf8.h"

namespace eecompile::tok {

namespace {

bool is_itself(unsigned byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

// Bytes that are no printable Latin-1 are counted on from U+0100.
struct Table {
  std::array<char32_t, 256> chars{};
  std::array<int, 512> bytes{};  // -1: none

  Table() {
    bytes.fill(-1);
    char32_t next = 256;
    for (unsigned byte = 0; byte < 256; ++byte) {
      chars[byte] = is_itself(byte) ? byte : next++;
      bytes[chars[byte]] = static_cast<int>(byte);
    }
  }
};

const Table& table() {
  static const Table made;
  return made;
}

}  // namespace

std::string bytes_to_chars(std::string_view bytes) {
  std::string chars;
  chars.reserve(bytes.size() + bytes.size() / 4);
  for (const char byte : bytes) append(chars, table().chars[static_cast<unsigned char>(byte)]);
  return chars;
}

std::string chars_to_bytes(std::string_view chars) {
  std::string bytes;
  for (std::size_t at = 0; at < chars.size();) {
    const Decoded next = decode(chars, at);
    const int byte = next.point < 512 ? table().bytes[next.point] : -1;
    if (byte < 0) return std::string(chars);
    bytes.push_back(static_cast<char>(static_cast<unsigned char>(byte)));
    at += next.size;
  }
  return bytes;
}

}  // namespace eecompile::tok
