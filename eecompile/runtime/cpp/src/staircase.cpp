#include "staircase.h"

#include <algorithm>
#include <cstring>

#include "eecompile/contract.h"

namespace eecompile {
namespace {

constexpr std::int64_t kKeptRows = 512;  // of a cache that the next sequence takes over

std::int64_t most_rows(const Manifest& m) { return std::max({m.prefill_rows, m.pending_cap + 1, m.minimum_rows}); }

std::vector<const GraphInfo*> writers(const Manifest& m, const LoadedGraphs& graphs) {
  std::vector<const GraphInfo*> found(m.caches.size());
  for (const Step& step : m.schedule) found[step.cache] = &graphs.segments[step.segment]->info();
  return found;
}

}  // namespace

Staircase::Staircase(const Manifest& manifest, const LoadedGraphs& graphs)
    : manifest_(manifest),
      graphs_(graphs),
      caches_(writers(manifest, graphs), graphs.embed->memory()),
      filled_(manifest.schedule.size()),
      waiting_(manifest.schedule.size() + 1) {
  const std::int64_t most = most_rows(manifest), width = manifest.model.hidden;
  for (std::size_t k = 0; k <= manifest.schedule.size(); ++k)
    boundary_.emplace_back("float32", std::vector<std::int64_t>{most, width});
  Memory& memory = graphs.memory();
  in_ = Tensor(memory, "float32", {1, most, width});
  out_ = Tensor(memory, "float32", {1, most, width});
  ids_ = Tensor(memory, "int64", {1, most});
  positions_ = Tensor(memory, "int64", {1, most});
  start_ = Tensor(memory, "int64", {1});
  newest_ = boundary_[0].data<float>();
}

void Staircase::reset() {
  if (caches_.grows() && caches_.rows() > kKeptRows) {
    caches_.resize(0);
    bound_.clear();
  }
  caches_.clear();
  std::fill(filled_.begin(), filled_.end(), 0);
  rewind(0);
  passes_ = layer_rows_ = 0;
}

void Staircase::rewind(std::int64_t length) {
  length_ = length;
  for (std::int64_t& filled : filled_) filled = std::min(filled, length);
  std::fill(waiting_.begin(), waiting_.end(), 0);
}

Status Staircase::append(const std::int64_t* tokens, std::int64_t count) {
  std::copy_n(tokens, count, ids_.data<std::int64_t>());
  if (Status status = pass(0, count); !status.ok()) return status;
  put(0, count);
  length_ += count;
  return {};
}

Status Staircase::run_step(std::size_t k) {
  const std::int64_t n = waiting_[k], rows = std::max(n, manifest_.minimum_rows), first = filled_[k];
  const auto width = static_cast<std::size_t>(manifest_.model.hidden);
  float* in = in_.data<float>();
  std::memcpy(in, boundary_[k].data<float>(), static_cast<std::size_t>(n) * width * sizeof(float));
  std::memset(in + static_cast<std::size_t>(n) * width, 0, static_cast<std::size_t>(rows - n) * width * sizeof(float));
  if (caches_.make_room(first + rows, manifest_.schedule[k].cache)) forget_bindings(k + 1);
  *start_.data<std::int64_t>() = first;
  for (std::int64_t row = 0; row < rows; ++row) positions_.data<std::int64_t>()[row] = first + row;
  if (Status status = pass(k + 1, rows); !status.ok()) return status;
  waiting_[k] = 0;
  filled_[k] += n;
  put(k + 1, n);
  ++passes_;
  layer_rows_ += n * graphs_.segments[manifest_.schedule[k].segment]->info().layers;
  return {};
}

Status Staircase::prefill(const Ids& tokens) {
  const auto all = static_cast<std::int64_t>(tokens.size());
  bool grown = false;
  for (const Step& step : manifest_.schedule) grown |= caches_.make_room(length_ + all, step.cache);
  if (grown) bound_.clear();
  for (std::int64_t start = 0; start < all; start += manifest_.prefill_rows) {
    if (Status status = append(tokens.data() + start, std::min(manifest_.prefill_rows, all - start)); !status.ok())
      return status;
    for (std::size_t k = 0; k < steps(); ++k)
      if (Status status = run_step(k); !status.ok()) return status;
  }
  return {};
}

void Staircase::put(std::size_t k, std::int64_t rows) {
  const auto width = static_cast<std::size_t>(manifest_.model.hidden);
  float* target = boundary_[k].data<float>() + static_cast<std::size_t>(waiting_[k]) * width;
  std::memcpy(target, out_.data<float>(), static_cast<std::size_t>(rows) * width * sizeof(float));
  newest_ = target;
  newest_rows_ = rows;
  if (k < steps()) waiting_[k] += rows;  // finished rows, in the last boundary, wait for nothing
}

void Staircase::forget_bindings(std::size_t k) {
  bound_.erase(bound_.lower_bound({k, 0}), bound_.lower_bound({k + 1, 0}));
}

// The pass that fills boundary k from in_ (or token ids) into out_. Bindings of decode passes are kept; those of
// prefill chunks of odd sizes are made anew.
Status Staircase::pass(std::size_t k, std::int64_t rows) {
  auto found = bound_.find({k, rows});
  if (found == bound_.end()) {
    Result<std::unique_ptr<Pass>> made = bind(k, rows);
    if (!made.ok()) return made.status();
    if (rows > manifest_.pending_cap + 2 && rows != manifest_.prefill_rows) return made.value()->run();
    found = bound_.emplace(std::pair{k, rows}, std::move(made).value()).first;
  }
  return found->second->run();
}

Result<std::unique_ptr<Pass>> Staircase::bind(std::size_t k, std::int64_t rows) const {
  Buffers buffers;
  const auto some = [&](const Tensor& tensor) {
    Buffer part = tensor.buffer();
    part.shape[1] = rows;
    return part;
  };
  buffers[std::string(contract::kHiddenOut)] = some(out_);
  if (k == 0) {
    buffers[std::string(contract::kTokenIds)] = some(ids_);
    return graphs_.embed->bind(buffers);
  }
  const Step& step = manifest_.schedule[k - 1];
  buffers[std::string(contract::kHidden)] = some(in_);
  buffers[std::string(contract::kPositions)] = some(positions_);
  buffers[std::string(contract::kWriteIndex)] = start_.buffer();
  caches_.bind(step.cache, buffers);
  return graphs_.segments[step.segment]->bind(buffers);
}

}  // namespace eecompile
