// Tokens and their ids, in a trie over bytes: one structure for looking up whole tokens and for finding every token
// that a text begins with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace eecompile::tok {

class Vocabulary {
 public:
  static constexpr std::uint32_t kNone = 0xFFFFFFFF;

  using Entry = std::pair<std::string, std::uint32_t>;

  Vocabulary() : Vocabulary(std::vector<Entry>()) {}

  // Of equal tokens the last one counts. Cost: O(n log n) in their number.
  explicit Vocabulary(std::vector<Entry> entries);

  std::size_t size() const { return entries_.size(); }

  // The highest id; -1 where there is none.
  std::int64_t highest() const { return entries_.empty() ? -1 : std::int64_t{entries_.back().second}; }

  // The id of a token; kNone where it is none. Cost: linear in its length.
  std::uint32_t find(std::string_view token) const;

  // The token of an id; nullptr where it is none. Cost: logarithmic in the number of tokens.
  const std::string* token(std::uint32_t id) const;

  // A place in the trie: walk it byte by byte. kNone: no token goes on so.
  std::uint32_t root() const { return 0; }
  std::uint32_t step(std::uint32_t node, char byte) const;
  std::uint32_t id_at(std::uint32_t node) const { return nodes_[node].id; }

 private:
  struct Node {
    std::uint32_t id = kNone, first_edge = 0;
  };

  std::vector<Entry> entries_;  // by id
  std::vector<Node> nodes_;     // edges of node i: from its first_edge up to node i + 1's
  std::vector<unsigned char> labels_;
  // Edge e leads to node e + 1: nodes are numbered in the order in which edges are made.
};

constexpr std::uint32_t kNone = Vocabulary::kNone;

}  // namespace eecompile::tok
