// Decoding: the loop that walks sequences down the staircase in each mode, one of them or many at once (decode.py).
//
// In a step of many, each token leaves where its own exit fires and goes on where it does not: none waits for another,
// and what a sequence emits is what it would emit alone.
// Thread safety: belongs to one session or batch. Cost: the staircases' and the heads'.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "eecompile/values.h"
#include "gates.h"
#include "heads.h"
#include "staircase.h"

namespace eecompile {

// How requests run: the rule of each exit (all closed in full mode), limits, the rule for skipped layers.
struct Settings {
  std::string mode = "full", kv = "catch_up";
  Rules rules;
  std::int64_t cap = 1;  // tokens that may be pending
  std::optional<std::int64_t> budget;

  bool full() const { return mode == "full"; }
  bool exact() const { return mode == "exact"; }
};

// One sequence being generated. `certain` are the tokens that the last step made certain, `fault` is why there will be
// no more.
struct Continuation {
  Continuation(Staircase& stairs, const Settings& settings, const Sampling& how)
      : stairs(stairs), settings(settings), state(settings.rules, how, settings.exact()) {}

  // Whether this exit is to be asked: it has a rule, and with catch_up not too many tokens have left early in a row.
  bool may_exit(std::size_t exit) const;
  void leave(const Token& token, std::size_t step);  // emits `token` from the exit after `step`; in exact mode a draft
  void account(Stats& stats) const;                  // notes what the sequence has cost so far

  Staircase& stairs;
  const Settings& settings;
  GateState state;
  std::vector<Token> drafts, certain;
  std::int64_t last = -1, early = 0, drafted = 0, rejected = 0;  // early: tokens since the last one from full depth
  Status fault;
};
using Those = std::vector<Continuation*>;

// Steps sequences of one pool, in the same passes.
class Decoder {
 public:
  // asked, finished: rows that exits are asked about and that a head decides at once, at most.
  Decoder(const Manifest& manifest, const LoadedGraphs& graphs, Askers& askers, std::int64_t asked,
          std::int64_t finished)
      : manifest_(manifest),
        heads_(heads_by_name(manifest, graphs, finished, asked)),
        gates_(manifest, askers, heads_) {}
  virtual ~Decoder() = default;
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  virtual bool on_gpu() const { return false; }  // whether the GPU decides at exits, and not the host

  // Chooses the first token of sequences whose prompts have just run through every step.
  Status start(const Those& those);

  // Embeds each one's last token and walks down: makes one token certain; in exact mode any number.
  virtual Status step(const Those& those);

  // Runs what is pending to full depth without new tokens, so that drafts become certain.
  virtual Status flush(const Those& those);

 protected:
  void verify(Continuation& one, const Decisions& decided, std::size_t at, std::int64_t count) const;

  const Manifest& manifest_;

 private:
  Status make_room(const Those& those);
  Status riding(std::size_t k, const Those& walking, const Those& left, Those& found);
  Status ask(std::size_t k, std::size_t exit, Those& walking, Those& left);
  Status finish(const Those& those);
  Status emit(const Those& those, bool alone);

  std::map<std::string, Head> heads_;
  ExitGates gates_;
  std::vector<float> rows_;
};

// The fault of logits from which nothing can be chosen.
Status not_finite(std::int64_t position);

}  // namespace eecompile
