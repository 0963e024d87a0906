#include "utf8.h"

namespace eecompile::tok {

namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

unsigned byte_at(std::string_view bytes, std::size_t at) { return static_cast<unsigned char>(bytes[at]); }

struct Lead {
  std::size_t size;        // 0: no character begins so
  unsigned lowest, highest;  // of the second byte
};

// The Unicode Standard, table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF.
Lead lead(unsigned byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte < 0xF0) return {3, byte == 0xE0 ? 0xA0u : 0x80u, byte == 0xED ? 0x9Fu : 0xBFu};
  if (byte < 0xF5) return {4, byte == 0xF0 ? 0x90u : 0x80u, byte == 0xF4 ? 0x8Fu : 0xBFu};
  return {0, 0, 0};
}

}  // namespace

Scanned scan(std::string_view bytes, std::size_t at) {
  const Lead begin = lead(byte_at(bytes, at));
  if (begin.size == 0) return {1, false, false};
  for (std::size_t i = 1; i < begin.size; ++i) {
    if (at + i == bytes.size()) return {i, false, true};
    const unsigned next = byte_at(bytes, at + i);
    const unsigned lowest = i == 1 ? begin.lowest : 0x80, highest = i == 1 ? begin.highest : 0xBF;
    if (next < lowest || next > highest) return {i, false, false};
  }
  return {begin.size, true, false};
}

std::string lossy(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  for (std::size_t at = 0; at < bytes.size();) {
    const Scanned next = scan(bytes, at);
    text.append(next.valid ? bytes.substr(at, next.size) : kReplacement);
    at += next.size;
  }
  return text;
}

Decoded decode(std::string_view text, std::size_t at) {
  const unsigned first = byte_at(text, at);
  if (first < 0x80) return {first, 1};
  const std::size_t size = lead(first).size;
  char32_t point = first & (0x7Fu >> size);
  for (std::size_t i = 1; i < size; ++i) point = point << 6 | (byte_at(text, at + i) & 0x3F);
  return {point, size};
}

Decoded decode_before(std::string_view text, std::size_t end) {
  std::size_t at = end - 1;
  while (at > 0 && (byte_at(text, at) & 0xC0) == 0x80) --at;
  return decode(text, at);
}

void append(std::string& text, char32_t point) {
  const auto put = [&text](char32_t byte) { text.push_back(static_cast<char>(static_cast<unsigned char>(byte))); };
  if (point < 0x80) return put(point);
  if (point < 0x800) {
    put(0xC0 | point >> 6);
  } else {
    if (point < 0x10000) {
      put(0xE0 | point >> 12);
    } else {
      put(0xF0 | point >> 18);
      put(0x80 | (point >> 12 & 0x3F));
    }
    put(0x80 | (point >> 6 & 0x3F));
  }
  put(0x80 | (point & 0x3F));
}

std::u32string points(std::string_view text) {
  std::u32string all;
  for (std::size_t at = 0; at < text.size();) {
    const Decoded next = decode(text, at);
    all.push_back(next.point);
    at += next.size;
  }
  return all;
}

}  // namespace eecompile::tok
