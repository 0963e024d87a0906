// Decoding: the loop that walks a sequence down the staircase in each mode (decode.py), and its exits' rules
// (gates.py).
//
// Thread safety: belongs to one session. Cost: the staircase's and the heads'.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "eecompile/values.h"
#include "heads.h"
#include "staircase.h"

namespace eecompile {

// When one exit fires: the learned gate's confidence above `cheap` and at most 1, then the head's decision within
// `bounds`.
struct ExitRule {
  std::array<float, 3> bounds;
  std::optional<double> cheap;

  // The rule of these thresholds; nothing where one of them is `never`.
  static std::optional<ExitRule> of(const Thresholds& thresholds);
};

// How requests run: the rule of each exit (none in full mode), limits.
struct Settings {
  bool exact = false, full = true;
  std::vector<std::optional<ExitRule>> rules;
  std::int64_t cap = 1;
  std::optional<std::int64_t> budget;
};

// One sequence being generated. `certain` are the tokens that the last step made certain.
class Decoder {
 public:
  Decoder(const Manifest& manifest, const LoadedGraphs& graphs, const Policy& policy, Settings settings);

  Status start(const Ids& prompt, const Sampling& sampling);  // runs the prompt and chooses the first token
  Status step();   // embeds the last token and walks down: makes one token certain; in exact mode any number
  Status flush();  // runs what is pending to full depth without new tokens, so that drafts become certain

  const std::vector<Token>& certain() const { return certain_; }
  std::size_t drafts() const { return drafts_.size(); }
  std::int64_t last() const { return last_; }
  void account(Stats& stats) const;  // notes what the sequence has cost so far
  const Settings& settings() const { return settings_; }

 private:
  Result<std::optional<std::int64_t>> ask(std::size_t exit);  // the token that the exit emits, or nothing
  Status finish();
  Status verify(const Decisions& decided, std::int64_t count);
  std::int64_t choose(const Decisions& decided, std::int64_t row, std::int64_t position) const;

  const Manifest& manifest_;
  Settings settings_;
  Staircase stairs_;
  Head head_;
  std::map<std::string, Head> heads_;
  std::vector<ExitAsker> askers_;
  Sampling sampling_;
  std::vector<Token> drafts_, certain_;
  std::int64_t last_ = -1, early_ = 0, drafted_ = 0, rejected_ = 0, declined_ = 0;
};

}  // namespace eecompile
