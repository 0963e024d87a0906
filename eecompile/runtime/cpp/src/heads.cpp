#include "heads.h"

#include <algorithm>
#include <cstring>

#include "eecompile/contract.h"

namespace eecompile {
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

Result<Decisions> Head::decide(const float* rows, std::int64_t n, const float* bounds, bool logits) {
  std::memcpy(hidden_.data<float>(), rows, static_cast<std::size_t>(n * hidden_width_) * sizeof(float));
  const std::int64_t padded = std::max(n, minimum_);
  for (std::int64_t row = 0; row < padded; ++row) {
    const float* own = row < n && bounds != nullptr ? bounds + 3 * row : contract::kNoBound.data();
    std::copy_n(own, 3, thresholds_.data<float>() + 3 * row);
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
                   margin_.data<float>(),
                   exit_flag_.data<bool>(),
                   logits ? logits_.data<float>() : nullptr,
                   width_,
                   ids_.empty() ? nullptr : &ids_};
}

std::map<std::string, Head> heads_by_name(const Manifest& m, const LoadedGraphs& graphs, std::int64_t finished,
                                          std::int64_t asked) {
  std::map<std::string, Head> heads;
  heads.emplace(contract::kFullHead, Head(graphs.head, m, m.model.vocab, finished));
  for (const HeadInfo& info : m.heads) {
    const std::int64_t width = info.tokens.empty() ? m.model.vocab : static_cast<std::int64_t>(info.tokens.size());
    heads.emplace(info.name, Head(graphs.heads.at(info.name), m, width, asked, info.tokens));
  }
  return heads;
}

}  // namespace eecompile
