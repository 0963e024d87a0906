#include "askers.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "eecompile/contract.h"

namespace eecompile {
namespace {

constexpr auto kCandidates = static_cast<std::size_t>(contract::kCandidateCount);

const Tensor* find(const RowBuffers& buffers, std::string_view name) {
  const auto found = buffers.find(name);
  return found == buffers.end() ? nullptr : &found->second;
}

// Row number `row` of a buffer.
template <typename T>
T* row_of(const Tensor& tensor, std::size_t row) {
  const std::size_t width = tensor.shape().size() > 1 ? static_cast<std::size_t>(tensor.shape()[1]) : 1;
  return tensor.data<T>() + row * width;
}

template <typename T>
std::vector<T> copied(const Tensor& tensor, std::size_t row) {
  const T* first = row_of<T>(tensor, row);
  return std::vector<T>(first, first + tensor.shape()[1]);
}

std::map<std::string, Tensor> weights_of(Memory& memory, const ExitInfo& info, const ExitPolicy& policy,
                                         std::int64_t hidden) {
  std::map<std::string, Tensor> found;
  const auto filled = [&](const std::vector<float>& values, std::vector<std::int64_t> shape) {
    return Tensor::constant(memory, "float32", std::move(shape), values.data());
  };
  for (const auto& [kind, g] : policy.gates) {
    const GateSize size = gate_size(info, kind, hidden).value_or(GateSize{});
    const auto in = static_cast<std::int64_t>(size.inputs), units = static_cast<std::int64_t>(size.units),
               out = static_cast<std::int64_t>(size.outputs);
    if (units > 0) {
      found.emplace(kind + "_w1", filled(g.w1, {in, units}));
      found.emplace(kind + "_b1", filled(g.b1, {units}));
    }
    found.emplace(kind + "_w2", filled(g.w2, {units > 0 ? units : in, out}));
    found.emplace(kind + "_b2", filled(g.b2, {out}));
  }
  return found;
}

}  // namespace

ExitAsker::ExitAsker(SharedEngine engine, const Manifest& m, std::size_t exit, const ExitPolicy& policy,
                     std::int64_t rows)
    : engine_(std::move(engine)),
      shape_(m.exits[exit]),
      exit_(static_cast<std::int64_t>(exit)),
      width_(m.model.hidden),
      buffers_(row_buffers(rows)),
      keeps_(exit + 1 < m.exits.size() && m.exits[exit + 1].has("saturation")),
      weights_(weights_of(*engine_->memory(), shape_, policy, width_)) {}

RowBuffers ExitAsker::row_buffers(std::int64_t rows) const {
  RowBuffers made;
  const auto add = [&](std::string_view name, std::int64_t width = 0, const char* dtype = "float32") {
    std::vector<std::int64_t> size = {rows};
    if (width > 0) size.push_back(width);
    made.emplace(name, Tensor(*engine_->memory(), dtype, std::move(size)));
  };
  add(contract::kHidden, width_), add(contract::kExitHidden, width_);
  if (shape_.has("learned")) add(contract::kConfidence);
  if (shape_.has("saturation")) add(contract::kSaturation), add(contract::kPrevious, width_);
  if (shape_.router) add(contract::kChoices, shape_.router->choices);
  if (!shape_.predictor) return made;
  add(contract::kPrediction);
  for (const std::string_view name : {contract::kLastLocal, contract::kLocal}) add(name, contract::kCandidateCount);
  for (const std::string_view name : {contract::kCandidates, contract::kCandidatesOut, contract::kCandidateTokens})
    add(name, contract::kCandidateCount, "int64");
  return made;
}

Status ExitAsker::ask(const float* rows, const Walks& walks, const Slots&) {
  const std::size_t n = walks.size();
  std::memcpy(find(buffers_, contract::kHidden)->data<float>(), rows,
              n * static_cast<std::size_t>(width_) * sizeof(float));
  remind(walks, buffers_);
  auto found = bound_.find(n);
  if (found == bound_.end()) {
    Buffers buffers;
    for (const auto& [name, tensor] : buffers_) buffers[name] = tensor.first(static_cast<std::int64_t>(n));
    Result<std::unique_ptr<Pass>> made = bind(std::move(buffers));
    if (!made.ok()) return made.status();
    found = bound_.emplace(n, std::move(made).value()).first;
  }
  if (Status status = found->second->run(); !status.ok()) return status;
  note(rows, walks, buffers_);
  said(walks, buffers_);
  return {};
}

Result<std::unique_ptr<Pass>> ExitAsker::bind(Buffers buffers) const {
  bind_weights(buffers);
  return engine_->bind(buffers);
}

void ExitAsker::remind(const Walks& walks, RowBuffers& buffers) const {
  const Tensor *previous = find(buffers, contract::kPrevious), *candidates = find(buffers, contract::kCandidates);
  const auto width = static_cast<std::size_t>(width_);
  for (std::size_t row = 0; row < walks.size(); ++row) {
    const Walk& walk = *walks[row];
    if (previous != nullptr) {
      const float* before = walk.before(exit_);
      float* target = row_of<float>(*previous, row);
      if (before != nullptr) std::memcpy(target, before, width * sizeof(float));
      if (before == nullptr) std::fill_n(target, width, 0.0f);
    }
    if (candidates == nullptr) continue;
    std::int64_t* places = row_of<std::int64_t>(*candidates, row);
    float* local = row_of<float>(*find(buffers, contract::kLastLocal), row);
    std::fill_n(places, kCandidates, -1);  // chosen by the graph
    std::fill_n(local, kCandidates, 0.0f);
    std::copy(walk.candidates.begin(), walk.candidates.end(), places);
    std::copy(walk.local.begin(), walk.local.end(), local);
  }
}

void ExitAsker::note(const float* rows, const Walks& walks, const RowBuffers& buffers) const {
  const Tensor *choices = find(buffers, contract::kChoices), *candidates = find(buffers, contract::kCandidatesOut);
  for (std::size_t row = 0; row < walks.size(); ++row) {
    Walk& walk = *walks[row];
    if (keeps_) {
      const float* own = rows + row * static_cast<std::size_t>(width_);
      walk.previous.assign(own, own + width_);
      walk.at = exit_;
    }
    if (choices != nullptr) {
      walk.choices = copied<float>(*choices, row);
      walk.routed = exit_;
    }
    if (candidates == nullptr) continue;
    walk.candidates = copied<std::int64_t>(*candidates, row);
    walk.local = copied<float>(*find(buffers, contract::kLocal), row);
  }
}

void ExitAsker::said(const Walks& walks, const RowBuffers& buffers) {
  hidden_out_ = find(buffers, contract::kExitHidden)->data<float>();
  routes_.clear();
  if (shape_.has("router"))
    for (const Walk* walk : walks) routes_.push_back(walk->route(exit_));
}

float ExitAsker::value(const std::string& criterion, std::size_t row) const {
  if (criterion == "router") return routes_[row];
  const Tensor* found = find(buffers_, criterion == "learned"      ? contract::kConfidence
                                       : criterion == "saturation" ? contract::kSaturation
                                                                   : contract::kPrediction);
  return found == nullptr ? std::numeric_limits<float>::quiet_NaN() : found->data<float>()[row];
}

bool ExitAsker::confirmed(std::size_t row, std::int64_t token) const {
  const Tensor* tokens = find(buffers_, contract::kCandidateTokens);
  if (tokens == nullptr) return true;
  const std::int64_t* first = row_of<std::int64_t>(*tokens, row);
  return std::find(first, first + kCandidates, token) != first + kCandidates;
}

void ExitAsker::bind_weights(Buffers& buffers) const {
  for (const auto& [name, tensor] : weights_) buffers[name] = tensor.buffer();
}

}  // namespace eecompile
