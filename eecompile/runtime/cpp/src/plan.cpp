#include "plan.h"

#include <algorithm>

namespace eecompile {

Plan plan_passes(const Waiting& waiting, double each_pass, std::int64_t most) {
  std::vector<Plan> best(1);
  for (std::size_t end = 1; end <= waiting.size(); ++end) {
    Plan found;
    std::int64_t rows = 0;
    for (std::size_t start = end; start-- > 0;) {
      rows = std::max(rows, waiting[start].second);
      const Range range{waiting[start].first, waiting[end - 1].first + 1, rows};
      const std::int64_t area = (range.last - range.first) * rows;
      if (area > most && end - start > 1) break;
      Plan option = best[start];
      option.cost += each_pass + static_cast<double>(area);
      option.ranges.push_back(range);
      if (found.ranges.empty() || option < found) found = std::move(option);
    }
    best.push_back(std::move(found));
  }
  return best.back();
}

bool riders(const Waiting& walking, const Waiting& others, double each_pass, std::int64_t most) {
  if (walking.empty() || others.empty()) return false;
  Waiting both = walking;
  both.insert(both.end(), others.begin(), others.end());
  std::sort(both.begin(), both.end());
  double together = plan_passes(both, each_pass, most).cost;
  for (const auto& [slot, rows] : others) together -= static_cast<double>(rows);
  return together <= plan_passes(walking, each_pass, most).cost + each_pass;
}

}  // namespace eecompile
