#include "schedules.h"

#include <algorithm>
#include <cmath>

namespace eecompile {
namespace {

using Beta = std::pair<double, double>;

constexpr double kEdge = 1e-4;  // a Beta density is taken no nearer to 0 and 1

double off_the_edges(double x) { return std::min(1 - kEdge, std::max(kEdge, x)); }

double log_gamma(double x) {  // of a positive number; lgamma would write to a global
  int sign = 0;
  return lgamma_r(x, &sign);
}

double log_density(const Beta& shape, double x) {
  const auto [a, b] = shape;
  const double scale = log_gamma(a + b) - log_gamma(a) - log_gamma(b);
  return scale + (a - 1) * std::log(x) + (b - 1) * std::log1p(-x);
}

// The likelihood of `upper` at x over that of both.
double share(const Beta& upper, const Beta& lower, double x) {
  const double at = off_the_edges(x), gap = log_density(lower, at) - log_density(upper, at);
  return 1 / (1 + std::exp(std::min(700.0, gap)));
}

double mean(const Beta& shape) { return shape.first / (shape.first + shape.second); }

// The grid point above which, by count, the Beta distribution with the higher mean is the likelier.
double lowest_likely(const Beta& one, const Beta& other, const ThresholdSchedule& shape) {
  const bool ordered = mean(one) >= mean(other);
  const Beta &upper = ordered ? one : other, &lower = ordered ? other : one;
  const double step = (shape.high - shape.low) / static_cast<double>(shape.points - 1);
  const auto point = [&](std::int64_t i) { return shape.low + static_cast<double>(i) * step; };
  std::int64_t likely = 0;
  for (std::int64_t i = 0; i < shape.points; ++i) likely += share(upper, lower, point(i)) > shape.zeta;
  return point(std::min(shape.points - likely, shape.points - 1));
}

}  // namespace

double decayed(double base, std::int64_t step, double tau, std::int64_t tokens) {
  const double moved = 0.1 * std::exp(-tau * static_cast<double>(step) / static_cast<double>(tokens));
  return std::min(1.0, std::max(0.0, 0.9 * base + moved));
}

void Moments::add(double value) {
  const double x = off_the_edges(value);
  ++count;
  total += x;
  squares += x * x;
}

std::optional<Beta> Moments::beta() const {
  if (count < 2) return std::nullopt;
  const double n = static_cast<double>(count), m = total / n, variance = squares / n - m * m;
  if (!(1e-12 < variance && variance < m * (1 - m))) return std::nullopt;
  const double alpha = m * (m * (1 - m) / variance - 1);
  return Beta{alpha, alpha * (1 - m) / m};
}

void AdaptiveThreshold::learn(double confidence, bool agrees) {
  if (updates_ >= shape_.updates || !std::isfinite(confidence)) return;
  (agrees ? agreed_ : differed_).add(confidence);
  const auto one = agreed_.beta(), other = differed_.beta();
  if (!one || !other) return;
  ++updates_;
  threshold_ = lowest_likely(*one, *other, shape_);
}

}  // namespace eecompile
