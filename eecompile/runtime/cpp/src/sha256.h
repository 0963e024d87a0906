// SHA-256 (FIPS 180-4). Thread safety: one hash belongs to one thread at a time. Cost: 104 bytes, no allocation.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace eecompile {

class Sha256 {
 public:
  void update(const void* data, std::size_t size);
  std::string hex();  // ends the hash: lower-case hexadecimal, 64 characters

 private:
  void block(const std::uint8_t* data);

  std::array<std::uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::uint8_t, 64> rest_{};
  std::uint64_t size_ = 0;
};

std::string sha256(std::string_view data);

}  // namespace eecompile
