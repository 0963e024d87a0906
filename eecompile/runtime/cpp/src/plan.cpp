#include "plan.h"

#include <algorithm>
#include <iterator>
#include <map>

namespace eecompile {

double pass_rows(const Profile& profile) {
  std::map<std::int64_t, double> times;
  for (const PassTime& pass : profile.passes)
    if (pass.graph.rfind("segment_", 0) == 0) times[pass.rows] += pass.seconds;
  if (times.size() < 2 || times.begin()->first != 1) return kPassRows;
  auto few = std::prev(times.end());  // the widest is a prefill's, which is bound by arithmetic
  if (times.size() > 2) --few;
  const double one = times.begin()->second, row = (few->second - one) / static_cast<double>(few->first - 1);
  return row > 0 ? std::min(64.0, std::max(1.0, (one - row) / row)) : 64.0;
}

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
      option.cost = option.cost + each_pass + static_cast<double>(area);  // in Python's order, which ties go by
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
  std::int64_t some_day = 0;
  for (const auto& [slot, rows] : others) some_day += rows;
  const double together = plan_passes(both, each_pass, most).cost;
  return together - static_cast<double>(some_day) <= plan_passes(walking, each_pass, most).cost + each_pass;
}

}  // namespace eecompile
