// Asking an exit whether a token may stop there: cheap gates, then a head, then what counts votes or candidates
// (gates.py).
//
// Thread safety: belongs to one session or batch. Cost: the askers' and the heads'.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "askers.h"
#include "eecompile/values.h"
#include "heads.h"
#include "rules.h"
#include "schedules.h"
#include "walk.h"

namespace eecompile {

using Askers = std::vector<std::unique_ptr<ExitAsker>>;
using Answers = std::vector<std::optional<std::int64_t>>;  // of each row the token that the exit emits, or to go on

// What one sequence's exits go by and have to remember: a function of the tokens it has emitted, so that rolling tokens
// back leaves nothing to undo.
class GateState {
 public:
  GateState(const Rules& rules, const Sampling& how, bool free) : rules(rules), sampling(how), free_(free) {}

  void start(std::int64_t first);                         // a prompt was read; the token at position `first` follows
  void begin(std::int64_t position);                      // the walk begins whose outcome is the token at `position`
  void learn(std::int64_t position, std::int64_t token);  // the full model's token, which nothing can change any more
  Bounds bounds(const ExitRule& rule) const;              // the rule's bounds, moved by its schedule
  // Keeps what an exit with an adaptive threshold said of the current token: its margin if that is a gate.
  void note(const ExitRule& rule, double max_prob, double margin, std::int64_t token);

  const Rules& rules;
  Sampling sampling;
  std::int64_t position = 0, declined = 0;  // heads that ran for an exit that then did not fire
  Walk walk;

 private:
  struct Note {  // what such an exit said, until the full model's token is known
    std::size_t exit = 0;
    double confidence = 0;
    std::int64_t token = 0;
  };
  double moved(const ExitRule& rule, double bound) const;

  bool free_;  // whether an adaptive threshold may be bolder than the policy's (drafts)
  std::int64_t first_ = 0;
  std::map<std::size_t, AdaptiveThreshold> learners_;
  std::map<std::int64_t, std::vector<Note>> notes_;
};

class ExitGates {
 public:
  // heads: by name, "full" and the small ones.
  ExitGates(const Manifest& manifest, Askers& askers, std::map<std::string, Head>& heads)
      : manifest_(manifest), askers_(askers), heads_(heads) {}

  // What exit `exit` says of a row [D] of each of `states`, stacked, the newest of the sequence in its slot. The exit
  // has to have a rule in every state.
  Status ask(std::size_t exit, const float* rows, const std::vector<GateState*>& states, const Slots& slots,
             Answers& answers);

 private:
  bool passes(const ExitRule& rule, const ExitAsker& asker, std::size_t row) const;
  Status decide(std::size_t exit, const std::vector<GateState*>& states, const std::vector<bool>& passed,
                const std::vector<std::size_t>& asked, Answers& answers);

  const Manifest& manifest_;
  Askers& askers_;
  std::map<std::string, Head>& heads_;
  std::vector<float> rows_, bounds_;
};

// The token for `position` from one row: the head's arg-max, or a sample of its logits.
std::int64_t choose(const Decisions& decided, std::size_t row, std::int64_t position, const Sampling& how);

}  // namespace eecompile
