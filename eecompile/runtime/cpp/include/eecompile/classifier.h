// Classifying texts with a bundle of an encoder.
//
//   auto bundle = eecompile::Bundle::open("build/rampart/bundle");
//   auto classifier = bundle->classifier({"confident"});
//   auto answer = classifier->classify({{{2, 117, 3052, 3}, {}, {true, false, false, true}}});
//   for (const eecompile::TokenLabel& token : answer->found[0].tokens) show(token.place, token.label);
//
// Texts come as token ids: `Tokenizer::encoding` (eecompile/tokenizer.h) makes them of text. Nothing here throws.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "eecompile/status.h"
#include "eecompile/values.h"

namespace eecompile {

// A text as the model reads it. types: the kind of each token (0 where there are none; beyond the model's highest: that
// one). special: tokens that stand for no text, which no text waits for; none where it is empty.
struct EncodedText {
  Ids ids;
  Ids types;
  std::vector<bool> special;
};

// How a classifier runs; what is not given is the policy's.
//
// mode: "full" or "confident" (calibrated). granularity: what leaves a batch on its own, "sentence" (a text) or, where
// each token has a label, "token"; nothing: as calibrated. minimum_depth: layers that everything runs, at least the
// policy's. budget: layer-rows that a text may take at full depth, at most the policy's. thresholds: by exit layer, in
// place of the policy's (nullopt closes the exit), and no bolder than calibrated.
struct ClassifierOptions {
  std::string mode = "full";
  std::optional<std::string> granularity;
  std::optional<std::int64_t> minimum_depth, budget;
  std::map<std::int64_t, std::optional<Thresholds>> thresholds;
};

// A token's label. place: which of its text's tokens it is. exit_layer: layers that were run before it was answered.
struct TokenLabel {
  std::size_t place = 0;
  std::int64_t id = 0;
  std::string label;
  std::vector<double> scores;
  std::int64_t exit_layer = 0;
};

// What a text was classified as. scores: probabilities in the order of the labels (a regression: its value). tokens:
// where each token has a label, all but the special ones; then `label` and `scores` are empty, and exit_layer is that
// of the deepest token.
struct Classification {
  std::string label;
  std::vector<double> scores;
  std::int64_t exit_layer = 0;
  std::vector<TokenLabel> tokens;
};

// What a request cost. layer_rows: rows through layers that were computed; frozen_rows: that only gave keys and values.
struct ClassifyStats {
  std::int64_t texts = 0, tokens = 0, passes = 0, layer_rows = 0, frozen_rows = 0;
  double seconds = 0;
  std::map<std::int64_t, std::int64_t> exit_layers;  // texts by depth; tokens where each has a label

  // Mean layers before an answer.
  double mean_depth() const;
};

struct Classified {
  std::vector<Classification> found;  // in the order of the texts
  ClassifyStats stats;
};

// Classifies texts in one mode. Thread-safe, and cheap to copy; it may outlive its Bundle.
// Cost of a batch: its rows' hidden states, and what one pass takes.
class Classifier {
 public:
  static constexpr std::size_t kBatch = 32;

  // Classifies texts, `batch` at a time, sorted by length: a batch's attention is as long as its longest text.
  // kUsage for a text without tokens, ids or kinds out of range, and one beyond the budget; kContextFull for one that
  // is too long; kNumeric where the logits are not finite.
  Result<Classified> classify(const std::vector<EncodedText>& texts, std::size_t batch = kBatch) const;

  bool per_token() const;  // whether tokens leave a batch on their own

 private:
  friend class Bundle;
  struct State;
  explicit Classifier(std::shared_ptr<const State> state);
  std::shared_ptr<const State> state_;
};

}  // namespace eecompile
