#include "walk.h"

#include <cmath>
#include <limits>

namespace eecompile {
namespace {

// The largest, NaN where one is.
float best(const float* first, const float* last) {
  float found = *first;
  for (; first != last; ++first)
    if (std::isnan(*first) || *first > found) found = *first;
  return found;
}

}  // namespace

std::int64_t Walk::vote(std::int64_t exit, std::int64_t answer) {
  streak = voted == exit - 1 && answer == token && answer >= 0 ? streak + 1 : 1;
  token = answer;
  voted = exit;
  return streak;
}

float Walk::route(std::int64_t exit) const {
  if (choices.empty() || routed < 0) return std::numeric_limits<float>::quiet_NaN();
  return router_score(choices, exit - routed);
}

float router_score(const std::vector<float>& choices, std::int64_t depth) {
  const float* middle = choices.data() + depth + 1;
  const float shallow = best(choices.data(), middle), deeper = best(middle, choices.data() + choices.size());
  return static_cast<float>(1 / (1 + std::exp(static_cast<double>(deeper - shallow))));
}

}  // namespace eecompile
