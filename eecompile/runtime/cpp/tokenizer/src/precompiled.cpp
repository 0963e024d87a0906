// SentencePiece's compiled character map: a double-array trie (darts-clone's layout) of texts, and what they become.
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "graphemes.h"
#include "normalizer.h"
#include "utf8.h"

namespace eecompile::tok {

namespace {

constexpr std::size_t kLongestCluster = 5;  // bytes: longer ones are looked up character by character

int digit(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  return c == '+' ? 62 : c == '/' ? 63 : -1;
}

// False where `text` is not base64 (RFC 4648).
bool decode_base64(std::string_view text, std::string& bytes) {
  while (!text.empty() && text.back() == '=') text.remove_suffix(1);
  std::uint32_t bits = 0;
  unsigned count = 0;
  for (const char c : text) {
    if (digit(c) < 0) return false;
    bits = bits << 6 | static_cast<std::uint32_t>(digit(c));
    count += 6;
    if (count >= 8) bytes.push_back(static_cast<char>(static_cast<unsigned char>(bits >> (count -= 8) & 0xFF)));
  }
  return true;
}

class Precompiled : public Normalizer {
 public:
  Precompiled(std::vector<std::uint32_t> trie, std::string texts) : trie_(std::move(trie)), texts_(std::move(texts)) {}

  // What the library does, byte for byte: a cluster becomes what its *shortest* known beginning becomes, and a
  // replacement by fewer characters at the very start shifts where the rest is said to come from.
  void apply(Text& text) const override {
    Rewriter out(text);
    const std::string_view bytes = text.bytes;
    std::size_t source = 0;  // where the library says that the next character comes from
    for (std::size_t at = 0, end = 0; at < bytes.size(); at = end) {
      end = cluster_end(bytes, at);
      if (end - at <= kLongestCluster && put(bytes.substr(at, end - at), bytes, out, source)) continue;
      for (std::size_t i = at; i < end;) {
        const std::size_t size = decode(bytes, i).size;
        if (!put(bytes.substr(i, size), bytes, out, source)) keep(bytes.substr(i, size), bytes, out, source);
        i += size;
      }
    }
    text = out.done();
  }

 private:
  // False where nothing is known of `part`.
  bool put(std::string_view part, std::string_view bytes, Rewriter& out, std::size_t& source) const {
    std::string_view made;
    if (!find(part, made)) return false;
    const std::size_t old_count = count(part);
    std::size_t taken = 0;
    for (std::size_t i = 0; i < made.size();) {
      const Decoded next = decode(made, i);
      const bool added = taken == old_count;
      out.put(next.point, added && source > 0 ? source - 1 : source);
      if (!added) source += decode(bytes, source).size, ++taken;
      i += next.size;
    }
    if (!made.empty() || source > 0) {
      for (; taken < old_count; ++taken) source += decode(bytes, source).size;
    }
    return true;
  }

  static void keep(std::string_view part, std::string_view bytes, Rewriter& out, std::size_t& source) {
    out.put(decode(part, 0).point, source);
    source += decode(bytes, source).size;
  }

  static std::size_t count(std::string_view text) {
    std::size_t found = 0;
    for_each_point(text, [&found](char32_t, std::size_t) { ++found; });
    return found;
  }

  // What the shortest beginning of `part` that the trie holds becomes.
  bool find(std::string_view part, std::string_view& made) const {
    std::size_t place = 0;
    std::uint32_t unit = trie_[0];
    place ^= offset(unit);
    for (const char c : part) {
      const auto byte = static_cast<unsigned char>(c);
      if (byte == 0) return false;
      place ^= byte;
      if (place >= trie_.size()) return false;
      unit = trie_[place];
      if ((unit & 0x800000FFu) != byte) return false;
      place ^= offset(unit);
      if ((unit >> 8 & 1) != 0) return value(place, made);
    }
    return false;
  }

  bool value(std::size_t place, std::string_view& made) const {
    const std::size_t begin = place < trie_.size() ? trie_[place] & 0x7FFFFFFFu : texts_.size();
    if (begin >= texts_.size() || (static_cast<unsigned char>(texts_[begin]) & 0xC0) == 0x80) return false;
    made = std::string_view(texts_).substr(begin, texts_.find('\0', begin) - begin);
    return true;
  }

  static std::size_t offset(std::uint32_t unit) { return std::size_t{unit >> 10} << ((unit & 0x200u) >> 6); }

  std::vector<std::uint32_t> trie_;
  std::string texts_;  // each ends with a zero byte
};

}  // namespace

std::unique_ptr<const Normalizer> precompiled_from(const Field& field) {
  const Field map = field.at("precompiled_charsmap");
  std::string bytes;
  if (!decode_base64(map.text(), bytes)) map.malformed("is not base64");
  const auto word = [&bytes](std::size_t at) {
    std::uint32_t value = 0;
    for (std::size_t i = 4; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
    return value;
  };
  const std::size_t size = bytes.size() < 4 ? 0 : word(0);
  if (size < 4 || size % 4 != 0 || size > bytes.size() - 4) map.malformed("holds no trie");
  std::vector<std::uint32_t> trie(1, 0);
  std::string texts;
  if (size >= 4 && size <= bytes.size() - 4) {
    trie.clear();
    for (std::size_t at = 4; at + 4 <= 4 + size; at += 4) trie.push_back(word(at));
    texts = bytes.substr(4 + size);
  }
  if (lossy(texts) != texts) map.malformed("holds a text that is not UTF-8");
  return std::make_unique<Precompiled>(std::move(trie), std::move(texts));
}

}  // namespace eecompile::tok
