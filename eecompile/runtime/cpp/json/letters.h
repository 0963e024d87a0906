// The inside of a JSON text, byte by byte as it is meant: escapes undone, and nothing allocated.
//
// Thread safety: one owner. Cost: none beyond the bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace eecompile::json {

// Of text that is known to be well-formed.
class Letters {
 public:
  explicit Letters(std::string_view raw) : raw_(raw) {}

  // The next byte, from 0 to 255; -1 at the end.
  int next() {
    if (given_ < made_) return pending_[given_++];
    if (at_ == raw_.size()) return -1;
    const char c = raw_[at_++];
    return c == '\\' ? escape() : static_cast<unsigned char>(c);
  }

 private:
  int escape() {
    static constexpr std::string_view kShort = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
    const char c = raw_[at_++];
    if (c != 'u') return static_cast<unsigned char>(kMeant[kShort.find(c)]);
    std::uint32_t point = unit();
    if (point >> 10 == 0x36) {  // the first half of a pair
      at_ += 2;
      point = 0x10000 + ((point & 0x3FF) << 10 | (unit() & 0x3FF));
    }
    made_ = given_ = 0;
    const auto put = [&](std::uint32_t bits) { pending_[made_++] = static_cast<std::uint8_t>(bits); };
    if (point < 0x80) {
      put(point);
    } else if (point < 0x800) {
      put(0xC0 | point >> 6);
    } else if (point < 0x10000) {
      put(0xE0 | point >> 12), put(0x80 | (point >> 6 & 0x3F));
    } else {
      put(0xF0 | point >> 18), put(0x80 | (point >> 12 & 0x3F)), put(0x80 | (point >> 6 & 0x3F));
    }
    if (point >= 0x80) put(0x80 | (point & 0x3F));
    return pending_[given_++];
  }

  std::uint32_t unit() {
    std::uint32_t value = 0;
    for (const std::size_t end = at_ + 4; at_ < end; ++at_) {
      const char c = raw_[at_];
      value = value << 4 | static_cast<std::uint32_t>(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
    }
    return value;
  }

  std::string_view raw_;
  std::size_t at_ = 0, made_ = 0, given_ = 0;
  std::array<std::uint8_t, 4> pending_{};
};

}  // namespace eecompile::json
