// Asking an encoder's exits and head what they would answer, and when an exit fires (labels.py).
//
// Thread safety: functions of their arguments; engines are shared. Cost: C numbers a row.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "eecompile/values.h"
#include "engine.h"

namespace eecompile {

// When an exit fires: every gate strictly bolder than its threshold. delta: for a regression, nothing where that gate
// is not among them.
struct ClassRule {
  std::array<float, 3> bounds;
  std::optional<double> delta;

  // The rule of these thresholds; nothing where one of them is `never`.
  static std::optional<ClassRule> of(const Thresholds& thresholds);
};

// An exit's answers for N rows: logits [N, C], and whether it fires.
struct Said {
  std::vector<float> logits;
  std::vector<bool> fires;
};

// An exit, or the head, of an encoder with `classes` labels. Thread-safe.
class AskedExit {
 public:
  AskedExit(SharedEngine engine, std::int64_t hidden, std::int64_t classes, bool regression);

  // Asks it of `count` hidden rows [N, D]; without a rule nothing fires. before [N]: what the exit before it said, for
  // a regression (NaN where there is none).
  Result<Said> operator()(const std::vector<float>& rows, std::size_t count, const std::optional<ClassRule>& rule,
                          const std::vector<float>& before) const;

 private:
  SharedEngine engine_;
  std::int64_t hidden_, classes_;
  bool regression_;
};

// A regression's gate: whether a value is finite and strictly nearer than `delta` to that of the exit before (PABEE's
// rule, Zhou et al., "BERT Loses Patience", 2020, equation 4, with a patience of one); `fixed` alone fires for every
// finite value.
bool delta_fires(float value, float before, const ClassRule& rule);

// The softmax of `count` logits.
std::vector<double> probabilities(const float* logits, std::size_t count);

}  // namespace eecompile
