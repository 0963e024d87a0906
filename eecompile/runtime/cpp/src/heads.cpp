#include "heads.h"

#include <algorithm>
#include <cstring>

#include "eecompile/contract.h"

namespace eecompile {
namespace {

Tensor filled(Memory& memory, const std::vector<float>& values, std::vector<std::int64_t> shape) {
  Tensor tensor(memory, "float32", std::move(shape));
  if (!values.empty()) std::memcpy(tensor.data<float>(), values.data(), values.size() * sizeof(float));
  return tensor;
}

}  // namespace

Head::Head(SharedEngine engine, const Manifest& m, std::int64_t width, std::int64_t rows, Ids ids)
    : engine_(std::move(engine)),
      width_(width),
      hidden_width_(m.model.hidden),
      minimum_(m.minimum_rows),
      ids_(std::move(ids)) {
  const std::int64_t most = std::max(rows, minimum_);
  Memory& memory = *engine_->memory();
  hidden_ = Tensor(memory, "float32", {most, hidden_width_});
  thresholds_ = Tensor(memory, "float32", {most, 3});
  token_ = Tensor(memory, "int64", {most});
  for (Tensor* score : {&max_prob_, &margin_, &entropy_}) *score = Tensor(memory, "float32", {most});
  exit_flag_ = Tensor(memory, "bool", {most});
}

Result<Decisions> Head::decide(const float* rows, std::int64_t n, const std::array<float, 3>& bounds, bool logits) {
  std::memcpy(hidden_.data<float>(), rows, static_cast<std::size_t>(n * hidden_width_) * sizeof(float));
  const std::int64_t padded = std::max(n, minimum_);
  for (std::int64_t row = 0; row < padded; ++row) {
    const std::array<float, 3>& own = row < n ? bounds : contract::kNoBound;
    std::copy(own.begin(), own.end(), thresholds_.data<float>() + 3 * row);
  }
  if (logits && logits_.bytes() == 0) 
    logits_ = Tensor(*engine_->memory(), "float32", {hidden_.shape()[0], width_});
  auto found = bound_.find({n, logits});
  if (found == bound_.end()) {
    Buffers buffers;
    const auto add = [&](std::string_view name, const Tensor& tensor) {
      buffers[std::string(name)] = tensor.first(padded);
    };
    add(contract::kHidden, hidden_), add(contract::kThresholds, thresholds_), add(contract::kToken, token_),
        add(contract::kMaxProb, max_prob_);
    add(contract::kMargin, margin_), add(contract::kEntropy, entropy_), add(contract::kExitFlag, exit_flag_);
    if (logits) add(contract::kLogits, logits_);
    Result<std::unique_ptr<Pass>> made = engine_->bind(buffers);
    if (!made.ok()) return made.status();
    found = bound_.emplace(std::pair{n, logits}, std::move(made).value()).first;
  }
  if (Status status = found->second->run(); !status.ok()) return status;
  return Decisions{token_.data<std::int64_t>(),
                   max_prob_.data<float>(),
                   exit_flag_.data<bool>(),
                   logits ? logits_.data<float>() : nullptr,
                   width_,
                   ids_.empty() ? nullptr : &ids_};
}

ExitAsker::ExitAsker(SharedEngine engine, const ExitInfo& info, const ExitPolicy& policy,
                     std::int64_t hidden)
    : engine_(std::move(engine)), gated_(info.gate_units > 0), width_(static_cast<std::size_t>(hidden)) {
  Memory& memory = *engine_->memory();
  hidden_ = Tensor(memory, "float32", {1, hidden});
  exit_hidden_ = Tensor(memory, "float32", {1, hidden});
  confidence_ = Tensor(memory, "float32", {1});
  if (!gated_ || !policy.gate) return;
  const GateWeights& g = *policy.gate;
  weights_ = {filled(memory, g.w1, {hidden, g.units}), filled(memory, g.b1, {g.units}),
              filled(memory, g.w2, {g.units, 1}), filled(memory, g.b2, {1})};
}

Status ExitAsker::ask(const float* row) {
  std::memcpy(hidden_.data<float>(), row, width_ * sizeof(float));
  if (!pass_) {
    Buffers buffers;
    const auto add = [&](std::string_view name, const Tensor& tensor) { buffers[std::string(name)] = tensor.buffer(); };
    add(contract::kHidden, hidden_), add(contract::kExitHidden, exit_hidden_);
    if (gated_) {
      add(contract::kConfidence, confidence_);
      add(contract::kGateW1, weights_[0]), add(contract::kGateB1, weights_[1]), add(contract::kGateW2, weights_[2]),
          add(contract::kGateB2, weights_[3]);
    }
    Result<std::unique_ptr<Pass>> made = engine_->bind(buffers);
    if (!made.ok()) return made.status();
    pass_ = std::move(made).value();
  }
  return pass_->run();
}

}  // namespace eecompile
