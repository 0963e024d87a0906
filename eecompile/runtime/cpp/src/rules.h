// When an exit fires, and which other exits it needs to have been asked before it (rules.py).
//
// Thread safety: values. Cost: a few numbers.
#pragma once

#include <array>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "eecompile/contract.h"
#include "manifest.h"

namespace eecompile {

using Bounds = std::array<float, 3>;  // of a head's decision: max_prob and margin above, entropy below

// When one exit fires: every gate strictly bolder than its threshold.
struct ExitRule {
  std::size_t exit = 0;
  Bounds bounds = contract::kNever;
  std::vector<std::pair<std::string, double>> cheap;  // thresholds of the gates that need no head
  std::optional<double> patience;                     // exits in a row that agree are more than this
  std::optional<ThresholdSchedule> schedule;          // moves the bounds of max_prob and margin
  bool opens = true;                                  // whether it may emit; else it is only listened to
  bool votes = false;                                 // whether its head runs whatever its gates say

  // The rule of these thresholds; nothing where one of them is `never`.
  static std::optional<ExitRule> of(std::size_t exit, const Thresholds& thresholds,
                                    const std::optional<ThresholdSchedule>& schedule);
};
using Rules = std::vector<std::optional<ExitRule>>;  // of each exit; nothing where one stays closed

// Whether a cheap gate's value is above its threshold and a value that it can have; NaN and infinity are not.
bool in_range(const std::string& criterion, double value, double bound);

// `rules` with what open exits need of the ones before them: closed exits that are asked all the same, and heads that
// run for their vote alone. What a gate goes by depends on the token's hidden states at the exits, open or not.
Rules with_listeners(Rules rules, const std::vector<ExitInfo>& exits);

}  // namespace eecompile
