#include <algorithm>
#include <optional>
#include <queue>
#include <string>
#include <unordered_map>
#include <utility>

#include "model.h"
#include "utf8.h"

namespace eecompile::tok {

namespace {

constexpr std::size_t kNowhere = static_cast<std::size_t>(-1);

struct Merge {
  std::uint32_t rank, id;
};

struct Candidate {
  std::uint32_t rank;
  std::size_t place;
  std::uint32_t id;

  bool operator<(const Candidate& other) const {  // so that the heap's top is the lowest rank, then the leftmost
    return rank != other.rank ? rank > other.rank : place > other.place;
  }
};

// A token in a doubly linked list; what was merged into its left neighbour is gone.
struct Symbol {
  std::uint32_t id;
  std::size_t length;  // bytes
  std::size_t previous, next;
  bool gone = false;
};

struct Settings {
  std::optional<std::uint32_t> unknown;
  bool fuse_unknown, byte_fallback, ignore_merges;
  std::string prefix, suffix;  // of what continues a word, of what ends one
};

class Bpe : public Model {
 public:
  using Merges = std::unordered_map<std::uint64_t, Merge>;

  Bpe(Vocabulary vocabulary, Merges merges, Settings settings)
      : Model(std::move(vocabulary)),
        merges_(std::move(merges)),
        settings_(std::move(settings)),
        bytes_(byte_tokens(vocabulary_)) {}

  static std::uint64_t key(std::uint32_t left, std::uint32_t right) { return std::uint64_t{left} << 32 | right; }

  // Cost: O(n log n) in the characters of the piece.
  void encode(std::string_view piece, Tokens& tokens) const override {
    if (settings_.ignore_merges) {
      const std::uint32_t whole = vocabulary_.find(piece);
      if (whole != kNone) return tokens.push_back({whole, 0, piece.size()});
    }
    std::vector<Symbol> symbols = characters(piece);
    merge(symbols);
    std::size_t at = 0;
    for (const Symbol& symbol : symbols) {
      if (symbol.gone) continue;
      tokens.push_back({symbol.id, at, at + symbol.length});
      at += symbol.length;
    }
  }

 private:
  std::uint32_t character(std::string_view piece, std::size_t at, std::size_t size) const {
    if (settings_.prefix.empty() && settings_.suffix.empty()) return vocabulary_.find(piece.substr(at, size));
    std::string token = (at > 0 ? settings_.prefix : "") + std::string(piece.substr(at, size));
    if (at + size == piece.size()) token += settings_.suffix;
    return vocabulary_.find(token);
  }

  // The bytes' tokens in place of a character that has none; false where one of them has none either.
  bool add_bytes(std::string_view bytes, std::vector<Symbol>& symbols) const {
    const auto token = [this](char byte) { return bytes_[static_cast<unsigned char>(byte)]; };
    if (!std::all_of(bytes.begin(), bytes.end(), [&](char byte) { return token(byte) != kNone; })) return false;
    for (const char byte : bytes) symbols.push_back({token(byte), 1, kNowhere, kNowhere});
    return true;
  }

  // An unknown character waits for the next known one, so that several may become one token; the library lets byte
  // tokens overtake it, and counts spans by the tokens' lengths in the order that comes of it.
  std::vector<Symbol> characters(std::string_view piece) const {
    std::vector<Symbol> symbols;
    std::size_t waiting = 0;  // bytes
    const auto add = [&symbols](std::uint32_t id, std::size_t length) {
      symbols.push_back({id, length, kNowhere, kNowhere});
    };
    for (std::size_t at = 0; at < piece.size();) {
      const std::size_t size = decode(piece, at).size;
      const std::uint32_t id = character(piece, at, size);
      if (id != kNone) {
        if (waiting > 0) add(*settings_.unknown, waiting);
        waiting = 0;
        add(id, size);
      } else if (!(settings_.byte_fallback && add_bytes(affixed(piece, at, size), symbols)) && settings_.unknown) {
        const bool parted = waiting > 0 && !settings_.fuse_unknown;
        if (parted) add(*settings_.unknown, waiting);
        waiting = parted ? size : waiting + size;
      }
      at += size;
    }
    if (waiting > 0) add(*settings_.unknown, waiting);
    link(symbols);
    return symbols;
  }

  std::string affixed(std::string_view piece, std::size_t at, std::size_t size) const {
    return (at > 0 ? settings_.prefix : "") + std::string(piece.substr(at, size)) +
           (at + size == piece.size() ? settings_.suffix : "");
  }

  static void link(std::vector<Symbol>& symbols) {
    for (std::size_t i = 1; i < symbols.size(); ++i) {
      symbols[i].previous = i - 1;
      symbols[i - 1].next = i;
    }
  }

  const Merge* find(std::uint32_t left, std::uint32_t right) const {
    const auto found = merges_.find(key(left, right));
    return found == merges_.end() ? nullptr : &found->second;
  }

  void merge(std::vector<Symbol>& symbols) const {
    std::vector<Candidate> first;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      if (const Merge* found = find(symbols[i].id, symbols[i + 1].id)) first.push_back({found->rank, i, found->id});
    }
    std::priority_queue<Candidate> queue(std::less<Candidate>(), std::move(first));
    const auto offer = [&](std::size_t left, std::size_t right) {
      if (left == kNowhere || right == kNowhere) return;
      if (const Merge* found = find(symbols[left].id, symbols[right].id)) queue.push({found->rank, left, found->id});
    };
    while (!queue.empty()) {
      const Candidate best = queue.top();
      queue.pop();
      Symbol& left = symbols[best.place];
      if (left.gone || left.next == kNowhere) continue;
      Symbol& right = symbols[left.next];
      const Merge* now = find(left.id, right.id);  // an older candidate may stand for tokens that are no more
      if (now == nullptr || now->id != best.id) continue;
      left.id = best.id;
      left.length += right.length;
      right.gone = true;
      left.next = right.next;
      if (left.next != kNowhere) symbols[left.next].previous = best.place;
      offer(left.previous, best.place);
      offer(best.place, left.next);
    }
  }

  Merges merges_;
  Settings settings_;
  std::vector<std::uint32_t> bytes_;
};

// "left right", or ["left", "right"]
bool read_pair(const Json& json, std::string& left, std::string& right) {
  if (json.is_array() && json.size() == 2 && json[0].is_string() && json[1].is_string()) {
    left = json[0].get<std::string>(), right = json[1].get<std::string>();
    return true;
  }
  if (!json.is_string()) return false;
  const auto line = json.get<std::string>();
  const std::size_t space = line.find(' ');
  if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos) return false;
  left = line.substr(0, space), right = line.substr(space + 1);
  return true;
}

bool is_version(const Json& json) {
  return json.is_string() && json.get<std::string>().rfind("#version", 0) == 0;
}

Bpe::Merges merges_from(const Field& field, const Vocabulary& vocabulary, std::size_t prefix) {
  Bpe::Merges merges;
  merges.reserve(field.size());
  std::string left, right;
  std::uint32_t rank = 0;
  std::size_t i = 0;
  for (const Json pair : field.json()) {
    const std::size_t number = i++;
    if (is_version(pair)) continue;
    if (!read_pair(pair, left, right) || right.size() < prefix) {
      field.element(number).malformed("is no pair of tokens");
      break;
    }
    const std::uint32_t a = vocabulary.find(left), b = vocabulary.find(right);
    const std::uint32_t made = vocabulary.find(left + right.substr(prefix));
    if (a == kNone || b == kNone || made == kNone) {
      field.element(number).malformed("merges tokens that the vocabulary lacks");
      break;
    }
    merges[Bpe::key(a, b)] = {rank++, made};
  }
  return merges;
}

}  // namespace

std::unique_ptr<const Model> bpe_from(const Field& field) {
  Vocabulary vocabulary = vocabulary_from(field.at("vocab"));
  Settings settings{{}, field.flag("fuse_unk", false), field.flag("byte_fallback", false),
                    field.flag("ignore_merges", false), field.text("continuing_subword_prefix", ""),
                    field.text("end_of_word_suffix", "")};
  if (field.has("dropout") && field.at("dropout").real() != 0) field.unsupported("dropout is not supported");
  if (field.has("unk_token")) {
    settings.unknown = vocabulary.find(field.at("unk_token").text());
    if (settings.unknown == kNone) field.at("unk_token").malformed("is not in the vocabulary");
  }
  Bpe::Merges merges = merges_from(field.at("merges"), vocabulary, settings.prefix.size());
  return std::make_unique<Bpe>(std::move(vocabulary), std::move(merges), std::move(settings));
}

}  // namespace eecompile::tok
