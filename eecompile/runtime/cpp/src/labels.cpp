#include "labels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "caches.h"
#include "eecompile/contract.h"
#include "encode.h"

namespace eecompile {
namespace {


}  // namespace

std::optional<ClassRule> ClassRule::of(const Thresholds& thresholds) {
  if (thresholds.count("never") > 0) return std::nullopt;
  ClassRule rule{contract::kNoBound, std::nullopt};
  for (std::size_t i = 0; i < contract::kHeadCriteria.size(); ++i)
    if (const auto found = thresholds.find(std::string(contract::kHeadCriteria[i])); found != thresholds.end())
      rule.bounds[i] = static_cast<float>(found->second);
  if (const auto found = thresholds.find("delta"); found != thresholds.end()) rule.delta = found->second;
  return rule;
}

AskedExit::AskedExit(SharedEngine engine, std::int64_t hidden, std::int64_t classes, bool regression)
    : engine_(std::move(engine)), hidden_(hidden), classes_(classes), regression_(regression) {}

Result<Said> AskedExit::operator()(const std::vector<float>& rows, std::size_t count,
                                   const std::optional<ClassRule>& rule, const std::vector<float>& before) const {
  const std::int64_t padded = static_cast<std::int64_t>(std::max(count, kLeastRows));
  Memory& memory = *engine_->memory();
  const Tensor hidden(memory, "float32", {padded, hidden_}), logits(memory, "float32", {padded, classes_}),
      thresholds(memory, "float32", {padded, 3}), flags(memory, "bool", {padded});
  std::copy(rows.begin(), rows.end(), hidden.data<float>());
  const std::array<float, 3>& bounds = rule ? rule->bounds : contract::kNever;
  for (std::int64_t row = 0; row < padded; ++row)
    std::copy(bounds.begin(), bounds.end(), thresholds.data<float>() + 3 * row);
  Buffers buffers;
  buffers[std::string(contract::kHidden)] = hidden.buffer();
  buffers[std::string(contract::kLogits)] = logits.buffer();
  if (!regression_) {
    buffers[std::string(contract::kThresholds)] = thresholds.buffer();
    buffers[std::string(contract::kExitFlag)] = flags.buffer();
  }
  const Result<std::unique_ptr<Pass>> pass = engine_->bind(buffers);
  if (!pass.ok()) return pass.status();
  if (Status status = (*pass)->run(); !status.ok()) return status;
  const float* const values = logits.data<float>();
  Said said{{values, values + count * static_cast<std::size_t>(classes_)}, std::vector<bool>(count)};
  for (std::size_t row = 0; row < count; ++row)
    said.fires[row] = regression_ ? rule && delta_fires(values[row], before[row], *rule) : flags.data<bool>()[row];
  return said;
}

bool delta_fires(float value, float before, const ClassRule& rule) {
  if (!std::isfinite(value)) return false;
  return !rule.delta || std::abs(value - before) < static_cast<float>(*rule.delta);
}

std::vector<double> probabilities(const float* logits, std::size_t count) {
  std::vector<double> shares(logits, logits + count);
  const double highest = *std::max_element(shares.begin(), shares.end());
  double sum = 0;
  for (double& share : shares) sum += share = std::exp(share - highest);
  for (double& share : shares) share /= sum;
  return shares;
}

}  // namespace eecompile
