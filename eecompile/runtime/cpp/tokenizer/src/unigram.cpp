#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "model.h"
#include "utf8.h"

namespace eecompile::tok {

namespace {

constexpr double kUnknownPenalty = 10.0;  // below the lowest score, as in SentencePiece
constexpr std::size_t kNoToken = static_cast<std::size_t>(-1);

// The best way to cut the text up to a byte.
struct Best {
  double score = 0;
  std::size_t begin = kNoToken;  // of its last token
  std::uint32_t id = 0;
};

class Unigram : public Model {
 public:
  Unigram(Vocabulary vocabulary, std::vector<double> scores, std::uint32_t unknown, bool byte_fallback)
      : Model(std::move(vocabulary)), scores_(std::move(scores)), unknown_(unknown) {
    unknown_score_ = *std::min_element(scores_.begin(), scores_.end()) - kUnknownPenalty;
    if (byte_fallback) bytes_ = byte_tokens(vocabulary_);
  }

  // The most probable cut (Viterbi). Cost: the text's bytes times the longest token's.
  void encode(std::string_view text, Tokens& tokens) const override {
    const std::vector<Best> best = forward(text);
    std::vector<std::pair<std::size_t, std::size_t>> cuts;  // the last token first; unknown neighbours as one
    bool after_unknown = false;
    for (std::size_t end = text.size(); end > 0; end = best[end].begin) {
      const bool unknown = best[end].id == unknown_;
      if (unknown && after_unknown) {
        cuts.back().first = best[end].begin;
      } else {
        cuts.emplace_back(best[end].begin, end);
      }
      after_unknown = unknown;
    }
    for (auto cut = cuts.rbegin(); cut != cuts.rend(); ++cut) {
      add(text, cut->first, cut->second, tokens);
    }
  }

 private:
  std::vector<Best> forward(std::string_view text) const {
    std::vector<Best> best(text.size() + 1);
    const auto offer = [&best](std::size_t begin, std::size_t end, std::uint32_t id, double score) {
      score += best[begin].score;
      if (best[end].begin == kNoToken || score > best[end].score) best[end] = {score, begin, id};
    };
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t size = decode(text, at).size;
      bool single = false;
      std::uint32_t node = vocabulary_.root();
      for (std::size_t end = at; end < text.size();) {
        node = vocabulary_.step(node, text[end++]);
        if (node == kNone) break;
        const std::uint32_t id = vocabulary_.id_at(node);
        if (id == kNone) continue;
        offer(at, end, id, scores_[id]);
        single = single || end - at == size;
      }
      if (!single) offer(at, at + size, unknown_, unknown_score_);
      at += size;
    }
    return best;
  }

  void add(std::string_view text, std::size_t begin, std::size_t end, Tokens& tokens) const {
    const std::string_view token = text.substr(begin, end - begin);
    const std::uint32_t id = vocabulary_.find(token);
    if (id != kNone) return tokens.push_back({id, begin, end});
    const auto byte_id = [this](char byte) { return bytes_[static_cast<unsigned char>(byte)]; };
    if (bytes_.empty() || std::any_of(token.begin(), token.end(), [&](char byte) { return byte_id(byte) == kNone; })) {
      return tokens.push_back({unknown_, begin, end});
    }
    for (const char byte : token) tokens.push_back({byte_id(byte), begin, end});
  }

  std::vector<double> scores_;  // by id
  std::uint32_t unknown_;
  double unknown_score_;
  std::vector<std::uint32_t> bytes_;
};

}  // namespace

std::unique_ptr<const Model> unigram_from(const Field& field) {
  const Field vocab = field.at("vocab");
  std::vector<Vocabulary::Entry> entries;
  std::vector<double> scores;
  for (const Json pair : vocab.json()) {
    if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string() || !pair[1].is_number()) {
      vocab.element(scores.size()).malformed("is no token with a score");
      return nullptr;
    }
    entries.emplace_back(pair[0].get<std::string>(), static_cast<std::uint32_t>(scores.size()));
    scores.push_back(pair[1].get<double>());
  }
  if (!field.has("unk_id")) field.unsupported("a Unigram model without an unk_id is not supported");
  const std::uint32_t unknown = field.at("unk_id").number();
  if (unknown >= scores.size()) {
    field.malformed("its unk_id is not in the vocabulary");
    return nullptr;
  }
  return std::make_unique<Unigram>(Vocabulary(std::move(entries)), std::move(scores), unknown,
                                   field.flag("byte_fallback", false));
}

}  // namespace eecompile::tok
