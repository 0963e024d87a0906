#include "vocabulary.h"

#include <algorithm>

namespace eecompile::tok {

namespace {

// The tokens [begin, end) of the sorted list share their first `depth` bytes: they are what lies under one node.
struct Range {
  std::size_t begin, end, depth;
};

}  // namespace

Vocabulary::Vocabulary(std::vector<Entry> entries) : entries_(std::move(entries)) {
  const auto by_token = [](const Entry& a, const Entry& b) { return a.first < b.first; };
  std::stable_sort(entries_.begin(), entries_.end(), by_token);
  std::vector<Range> ranges{{0, entries_.size(), 0}};
  for (std::size_t node = 0; node < ranges.size(); ++node) {
    auto [begin, end, depth] = ranges[node];
    nodes_.push_back({kNone, static_cast<std::uint32_t>(labels_.size())});
    for (; begin < end && entries_[begin].first.size() == depth; ++begin) nodes_.back().id = entries_[begin].second;
    while (begin < end) {
      const char label = entries_[begin].first[depth];
      std::size_t last = begin;
      while (last < end && entries_[last].first[depth] == label) ++last;
      labels_.push_back(static_cast<unsigned char>(label));
      ranges.push_back({begin, last, depth + 1});
      begin = last;
    }
  }
  nodes_.push_back({kNone, static_cast<std::uint32_t>(labels_.size())});
  const auto by_id = [](const Entry& a, const Entry& b) { return a.second < b.second; };
  std::stable_sort(entries_.begin(), entries_.end(), by_id);
}

std::uint32_t Vocabulary::step(std::uint32_t node, char byte) const {
  const auto begin = labels_.begin() + nodes_[node].first_edge, end = labels_.begin() + nodes_[node + 1].first_edge;
  const auto label = static_cast<unsigned char>(byte);
  const auto edge = std::lower_bound(begin, end, label);
  return edge != end && *edge == label ? static_cast<std::uint32_t>(edge - labels_.begin()) + 1 : kNone;
}

std::uint32_t Vocabulary::find(std::string_view token) const {
  std::uint32_t node = root();
  for (const char byte : token) {
    node = step(node, byte);
    if (node == kNone) return kNone;
  }
  return id_at(node);
}

const std::string* Vocabulary::token(std::uint32_t id) const {
  const auto before = [](const Entry& entry, std::uint32_t wanted) { return entry.second < wanted; };
  const auto entry = std::lower_bound(entries_.begin(), entries_.end(), id, before);
  return entry != entries_.end() && entry->second == id ? &entry->first : nullptr;
}

}  // namespace eecompile::tok
