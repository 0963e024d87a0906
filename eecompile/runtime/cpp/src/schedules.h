// Thresholds that move while decoding: CALM's decay with time, FREE's fit to what verification shows (schedules.py).
//
// Thread safety: values of one sequence. Cost: a few numbers; a fit takes two densities for each grid point.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include "manifest.h"

namespace eecompile {

// CALM's threshold for token `step` of an answer of `tokens` (Schuster et al. 2022): clip(.9 base + .1 exp(-tau step /
// tokens), 0, 1).
double decayed(double base, std::int64_t step, double tau, std::int64_t tokens);

// Count, sum and sum of squares of confidences in (0, 1).
struct Moments {
  std::int64_t count = 0;
  double total = 0, squares = 0;

  void add(double value);
  std::optional<std::pair<double, double>> beta() const;  // the Beta distribution of this mean and variance, if any
};

// FREE's adaptive threshold of one exit in one sequence (Bae et al. 2023): the lowest grid point from which on the
// likelier of two Beta distributions, of confidences that agreed with the full model and of the others, is the one of
// the higher mean.
class AdaptiveThreshold {
 public:
  explicit AdaptiveThreshold(const ThresholdSchedule& shape) : shape_(shape) {}
  void learn(double confidence, bool agrees);
  const std::optional<double>& threshold() const { return threshold_; }

 private:
  ThresholdSchedule shape_;
  Moments agreed_, differed_;
  std::int64_t updates_ = 0;
  std::optional<double> threshold_;
};

}  // namespace eecompile
