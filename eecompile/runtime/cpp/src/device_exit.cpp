#include "device_exit.h"

#include <algorithm>

#include "eecompile/contract.h"

namespace eecompile {

Result<std::unique_ptr<DevicePass>> on_device(Result<std::unique_ptr<Pass>> bound) {
  if (!bound.ok()) return bound.status();
  auto* const found = dynamic_cast<DevicePass*>(bound->get());
  if (found == nullptr) return Status{Code::kInternal, "a pass of another back end than TensorRT's", "", ""};
  bound->release();
  return std::unique_ptr<DevicePass>(found);
}

Status unfinished() {
  return {Code::kInternal, "a step ended on the GPU before it was done", "",
          "decide by the pinned flag: --decision pinned"};
}

Result<DeviceHead> DeviceHead::bind(const Engine& engine, const Buffer& hidden) {
  Memory& memory = *engine.memory();
  const std::int64_t rows = hidden.shape[0];
  DeviceHead made;
  made.token_ = Tensor(memory, "int64", {rows});
  for (Tensor* score : {&made.max_prob_, &made.margin_, &made.entropy_}) *score = Tensor(memory, "float32", {rows});
  made.flag_ = Tensor(memory, "bool", {rows});
  made.bounds_ = Tensor(memory, "float32", {rows, 3});
  for (std::int64_t row = 0; row < rows; ++row)
    std::copy(contract::kNoBound.begin(), contract::kNoBound.end(), made.bounds_.data<float>() + 3 * row);
  Buffers buffers;
  buffers[std::string(contract::kHidden)] = hidden;
  for (const auto& [name, tensor] :
       {std::pair{contract::kThresholds, &made.bounds_}, {contract::kToken, &made.token_},
        {contract::kMaxProb, &made.max_prob_}, {contract::kMargin, &made.margin_},
        {contract::kEntropy, &made.entropy_}, {contract::kExitFlag, &made.flag_}})
    buffers[std::string(name)] = tensor->buffer();
  Result<std::unique_ptr<DevicePass>> pass = on_device(engine.bind(buffers));
  if (!pass.ok()) return pass.status();
  made.pass_ = std::move(pass).value();
  return made;
}

Decisions DeviceHead::decisions() const {
  Decisions found;
  found.token = token_.data<std::int64_t>();
  found.max_prob = max_prob_.data<float>();
  found.margin = margin_.data<float>();
  found.exit_flag = flag_.data<bool>();
  return found;
}

void DeviceHead::set(const Bounds& bounds) { std::copy(bounds.begin(), bounds.end(), bounds_.data<float>()); }

DeviceExit::DeviceExit(GpuMemory& memory, const ExitRule& rule, std::int64_t width)
    : row_(Tensor::cache(memory, "float32", {1, width})),
      ready_(Tensor::cache(memory, "float32", {1, width})),
      value_(Tensor::cache(memory, "float32", {1})),
      outcome_(memory.rows(sizeof(std::int32_t))) {
  for (const auto& [criterion, bound] : rule.cheap)
    if (criterion == "learned") gate_ = bound;
}

Result<std::unique_ptr<DeviceExit>> DeviceExit::bind(GpuMemory& memory, const ExitAsker& asker, const Engine& head,
                                                     const ExitRule& rule, std::int64_t width) {
  std::unique_ptr<DeviceExit> made(new DeviceExit(memory, rule, width));
  Result<std::unique_ptr<DevicePass>> exit =
      on_device(asker.bind({{std::string(contract::kHidden), made->row_.buffer()},
                            {std::string(contract::kExitHidden), made->ready_.buffer()},
                            {std::string(contract::kConfidence), made->value_.buffer()}}));
  if (!exit.ok()) return exit.status();
  made->exit_ = std::move(exit).value();
  Result<DeviceHead> bound = DeviceHead::bind(head, made->ready_.buffer());
  if (!bound.ok()) return bound.status();
  made->head_ = std::move(bound).value();
  return made;
}

Result<ExitOutcome> DeviceExit::outcome() const {
  const auto found = static_cast<ExitOutcome>(*outcome_address());
  if (found == ExitOutcome::kNotReached || found == ExitOutcome::kAsked) return unfinished();
  return found;
}

void DeviceExit::clear(const Bounds& bounds) {
  *outcome_address() = static_cast<std::int32_t>(ExitOutcome::kNotReached);
  head_.set(bounds);
}

Status DeviceExit::enqueue(Level& level, const ConditionHandle* asks, ConditionHandle goes_on) {
  if (Status status = exit_->enqueue(level.turn()); !status.ok()) return status;
  if (asks != nullptr) return level.ask(value_.data<float>(), *gate_, 1.0, outcome_address(), asks);
  if (Status status = head_.pass().enqueue(level.turn()); !status.ok()) return status;
  return decide(level, goes_on);
}

Status DeviceExit::enqueue_head(Level& level, ConditionHandle asks, ConditionHandle goes_on) {
  Result<Level> body = level.branch(asks);
  if (!body.ok()) return body.status();
  Status status = body->section([&] { return head_.pass().enqueue(body->turn()); });
  return status.ok() ? level.section([&] { return decide(level, goes_on); }) : status;
}

Status DeviceExit::decide(Level& level, ConditionHandle goes_on) {
  return level.decide(head_.flag(), gated(), outcome_address(), goes_on);
}

}  // namespace eecompile
