#include "rules.h"

#include <algorithm>
#include <cmath>

namespace eecompile {

std::optional<ExitRule> ExitRule::of(std::size_t exit, const Thresholds& thresholds,
                                     const std::optional<ThresholdSchedule>& schedule) {
  if (thresholds.count("never") > 0) return std::nullopt;
  ExitRule rule;
  rule.exit = exit;
  rule.bounds = contract::kNoBound;
  rule.schedule = schedule;
  for (const auto& [criterion, value] : thresholds) {
    const auto head = std::find(contract::kHeadCriteria.begin(), contract::kHeadCriteria.end(), criterion);
    const auto& cheap = contract::kCheapCriteria;
    if (head != contract::kHeadCriteria.end())
      rule.bounds[static_cast<std::size_t>(head - contract::kHeadCriteria.begin())] = static_cast<float>(value);
    if (std::find(cheap.begin(), cheap.end(), criterion) != cheap.end()) rule.cheap.emplace_back(criterion, value);
    if (criterion == "patience") rule.patience = value;
  }
  return rule;
}

bool in_range(const std::string& criterion, double value, double bound) {
  const double highest = criterion == "saturation" ? 1 + static_cast<double>(contract::kCosineSlack) : 1;
  return bound < value && value <= highest;
}

Rules with_listeners(Rules rules, const std::vector<ExitInfo>& exits) {
  std::set<std::size_t> asked, votes;
  for (std::size_t g = 0; g < rules.size(); ++g) {
    if (!rules[g]) continue;
    if (exits[g].has("saturation") && g > 0) asked.insert(g - 1);
    if (exits[g].has("router"))
      if (const auto source = router_of(exits, g); source && *source < g) asked.insert(*source);
    for (std::size_t i = 0; i < g && exits[g].has("predictor"); ++i)
      if (exits[i].predictor) asked.insert(i);
    if (!rules[g]->patience) continue;
    const auto back = static_cast<std::size_t>(std::floor(*rules[g]->patience));
    for (std::size_t i = g - std::min(g, back); i < g; ++i) votes.insert(i);
  }
  for (std::size_t i = 0; i < rules.size(); ++i) {
    const bool votes_here = votes.count(i) > 0;
    if (!votes_here && asked.count(i) == 0) continue;
    if (!rules[i]) {
      rules[i].emplace();
      rules[i]->exit = i;
      rules[i]->opens = false;
    }
    rules[i]->votes = rules[i]->votes || votes_here;
  }
  return rules;
}

}  // namespace eecompile
