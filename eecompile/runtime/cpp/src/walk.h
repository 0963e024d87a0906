// What the exits have said of a token on its way down, where a deeper exit goes by it (walk.py).
//
// Thread safety: a value of one sequence. Cost: a hidden state where an exit compares with the one before, and a few
// numbers.
#pragma once

#include <cstdint>
#include <vector>

namespace eecompile {

// Belongs to one token at one position and begins anew for the next, so that rolling tokens back undoes nothing here.
// An array is empty until an exit has written it.
struct Walk {
  static constexpr std::int64_t kNone = -2;  // no exit, nor the one before any

  std::int64_t at = kNone, voted = kNone, routed = kNone;  // the exits that wrote `previous`, `token` and `choices`
  std::vector<float> previous;                             // [D]: the row at exit `at`
  std::int64_t token = -1, streak = 0;   // what exit `voted` would answer, and how many exits in a row answer that
  std::vector<float> choices;            // [C]: logits of the router of exit `routed`
  std::vector<std::int64_t> candidates;  // [K]: the predictor's
  std::vector<float> local;              // [K]

  // The row at the exit just before `exit`, or null where it was not kept.
  const float* before(std::int64_t exit) const {
    return at == exit - 1 && !previous.empty() ? previous.data() : nullptr;
  }

  // Takes the answer of exit `exit`; returns how many exits in a row, it included, answer that (Zhou et al. 2020).
  std::int64_t vote(std::int64_t exit, std::int64_t answer);

  // How sure its router is that the token may stop at exit `exit`; NaN where none was asked.
  float route(std::int64_t exit) const;
};

// How much more a router favours one of the choices 0..depth to going deeper: sigmoid(best of them - best of the deeper
// ones), in double. NaN where a choice is.
float router_score(const std::vector<float>& choices, std::int64_t depth);

}  // namespace eecompile
