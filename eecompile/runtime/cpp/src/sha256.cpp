#include "sha256.h"

#include <algorithm>
#include <cstring>

#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#define EECOMPILE_SHA256
#elif defined(__AARCH64EL__) && defined(__linux__) && (defined(__ARM_FEATURE_SHA2) || !defined(__clang__))
#include <arm_neon.h>  // clang has these instructions where all code may have them (-march=armv8-a+sha2)
#include <sys/auxv.h>
#define EECOMPILE_SHA256
#endif

namespace eecompile {
namespace {

alignas(16) constexpr std::array<std::uint32_t, 64> kRounds = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

std::uint32_t turned(std::uint32_t x, int by) { return x >> by | x << (32 - by); }

void plain_block(std::uint32_t* state, const std::uint8_t* data) {
  std::array<std::uint32_t, 64> w{};
  for (std::size_t i = 0; i < 16; ++i)
    w[i] = std::uint32_t{data[4 * i]} << 24 | std::uint32_t{data[4 * i + 1]} << 16 |
           std::uint32_t{data[4 * i + 2]} << 8 | data[4 * i + 3];
  for (std::size_t i = 16; i < 64; ++i) {
    const std::uint32_t a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + (turned(a, 7) ^ turned(a, 18) ^ a >> 3) + w[i - 7] + (turned(b, 17) ^ turned(b, 19) ^ b >> 10);
  }
  std::uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6],
                h = state[7];
  for (std::size_t i = 0; i < 64; ++i) {
    const std::uint32_t first =
        h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + kRounds[i] + w[i];
    const std::uint32_t second = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
  }
  const std::array<std::uint32_t, 8> now = {a, b, c, d, e, f, g, h};
  for (std::size_t i = 0; i < now.size(); ++i) state[i] += now[i];
}

void plain_blocks(std::uint32_t* state, const std::uint8_t* data, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) plain_block(state, data + 64 * i);
}

#ifdef __x86_64__

bool has_instructions() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_SSSE3) == 0 || (c & bit_SSE4_1) == 0) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & bit_SHA) != 0;
}

__m128i loaded(const void* data) { return _mm_loadu_si128(static_cast<const __m128i*>(data)); }
void store(void* target, __m128i value) { _mm_storeu_si128(static_cast<__m128i*>(target), value); }

// The instructions want the state as (a, b, e, f) and (c, d, g, h), the first in the highest lane; they do two rounds.
__attribute__((target("sha,sse4.1"))) void fast_blocks(std::uint32_t* state, const std::uint8_t* data,
                                                       std::size_t count) {
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  const __m128i cdab = _mm_shuffle_epi32(loaded(state), 0xB1), efgh = _mm_shuffle_epi32(loaded(state + 4), 0x1B);
  __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xF0);
  for (; count > 0; --count, data += 64) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i w[4];
    for (std::size_t i = 0; i < 16; ++i) {
      __m128i& own = w[i % 4];  // words 4 i to 4 i + 3, in the place of those 16 before
      if (i < 4) {
        own = _mm_shuffle_epi8(loaded(data + 16 * i), big_endian);
      } else {
        const __m128i last = w[(i + 3) % 4], seven_ago = _mm_alignr_epi8(last, w[(i + 2) % 4], 4);
        own = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(own, w[(i + 1) % 4]), seven_ago), last);
      }
      const __m128i keyed = _mm_add_epi32(own, loaded(kRounds.data() + 4 * i));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, keyed);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(keyed, 0x0E));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1B), dchg = _mm_shuffle_epi32(cdgh, 0xB1);
  store(state, _mm_blend_epi16(feba, dchg, 0xF0));
  store(state + 4, _mm_alignr_epi8(dchg, feba, 8));
}

#elif defined(EECOMPILE_SHA256)

bool has_instructions() {
  constexpr unsigned long kSha2 = 1ul << 6;  // HWCAP_SHA2, by Linux for arm64
  return (getauxval(AT_HWCAP) & kSha2) != 0;
}

// The instructions want the state as (a, b, c, d) and (e, f, g, h); they do four rounds.
__attribute__((target("+crypto"))) void fast_blocks(std::uint32_t* state, const std::uint8_t* data, std::size_t count) {
  uint32x4_t abcd = vld1q_u32(state), efgh = vld1q_u32(state + 4);
  for (; count > 0; --count, data += 64) {
    const uint32x4_t abcd_before = abcd, efgh_before = efgh;
    uint32x4_t w[4];
    for (std::size_t i = 0; i < 16; ++i) {
      uint32x4_t& own = w[i % 4];  // words 4 i to 4 i + 3, in the place of those 16 before
      if (i < 4) {
        own = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(data + 16 * i)));
      } else {
        own = vsha256su1q_u32(vsha256su0q_u32(own, w[(i + 1) % 4]), w[(i + 2) % 4], w[(i + 3) % 4]);
      }
      const uint32x4_t keyed = vaddq_u32(own, vld1q_u32(kRounds.data() + 4 * i)), first = abcd;
      abcd = vsha256hq_u32(abcd, efgh, keyed);
      efgh = vsha256h2q_u32(efgh, first, keyed);
    }
    abcd = vaddq_u32(abcd, abcd_before);
    efgh = vaddq_u32(efgh, efgh_before);
  }
  vst1q_u32(state, abcd);
  vst1q_u32(state + 4, efgh);
}

#endif

}  // namespace

Sha256::Sha256([[maybe_unused]] bool plain) : blocks_(plain_blocks) {
#ifdef EECOMPILE_SHA256
  static const bool has = has_instructions();
  if (has && !plain) blocks_ = fast_blocks;
#endif
}

bool Sha256::is_fast() const { return blocks_ != plain_blocks; }

void Sha256::update(const void* data, std::size_t size) {
  const auto* next = static_cast<const std::uint8_t*>(data);
  std::size_t held = size_ % rest_.size();
  size_ += size;
  while (size > 0) {
    if (held == 0 && size >= rest_.size()) {
      const std::size_t count = size / rest_.size();
      blocks_(state_.data(), next, count);
      next += count * rest_.size();
      size -= count * rest_.size();
      continue;
    }
    const std::size_t taken = std::min(size, rest_.size() - held);
    std::memcpy(rest_.data() + held, next, taken);
    held += taken;
    next += taken;
    size -= taken;
    if (held == rest_.size()) {
      blocks_(state_.data(), rest_.data(), 1);
      held = 0;
    }
  }
}

std::string Sha256::hex() {
  const std::uint64_t bits = size_ * 8;
  const std::uint8_t one = 0x80, zero = 0;
  update(&one, 1);
  while (size_ % rest_.size() != 56) update(&zero, 1);
  std::array<std::uint8_t, 8> length{};
  for (std::size_t i = 0; i < 8; ++i) length[i] = static_cast<std::uint8_t>(bits >> (56 - 8 * i));
  update(length.data(), length.size());
  std::string text;
  for (const std::uint32_t word : state_)
    for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15];
  return text;
}

std::string sha256(std::string_view data) {
  Sha256 hash;
  hash.update(data.data(), data.size());
  return hash.hex();
}

}  // namespace eecompile
