#include "modules.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "eecompile/contract.h"

namespace eecompile {
namespace {

constexpr std::size_t kKeptPasses = 64;  // bindings, which growing caches make stale after about as many tokens
constexpr std::array<std::string_view, 3> kGiven = {contract::kPrevious, contract::kCandidates, contract::kLastLocal};

bool is_given(std::string_view name) { return std::find(kGiven.begin(), kGiven.end(), name) != kGiven.end(); }

void copy_row(const Tensor& from, std::size_t source, const Tensor& to, std::size_t target) {
  const std::size_t bytes = from.bytes() / static_cast<std::size_t>(from.shape()[0]);
  std::memcpy(to.data<std::byte>() + target * bytes, from.data<std::byte>() + source * bytes, bytes);
}

}  // namespace

LayerAsker::LayerAsker(SharedEngine engine, const Manifest& m, std::size_t exit, const ExitPolicy& policy,
                       std::size_t slots, double each_pass)
    : ExitAsker(engine, m, exit, policy, static_cast<std::int64_t>(slots)),
      manifest_(m),
      each_pass_(each_pass),
      wait_(std::max({m.prefill_rows, m.pending_cap + 1, m.minimum_rows})),
      most_(std::max(wait_, static_cast<std::int64_t>(slots))),
      filled_(slots),
      waiting_(slots),
      rows_("float32", {static_cast<std::int64_t>(slots), wait_, width_}),
      positions_(*engine_->memory(), "int64", {most_}),
      start_(*engine_->memory(), "int64", {static_cast<std::int64_t>(slots)}),
      flat_(row_buffers(most_)),
      caches_({&engine_->info()}, engine_->memory(), static_cast<std::int64_t>(slots)) {}

Status LayerAsker::ask(const float* rows, const Walks& walks, const Slots& slots) {
  remind(walks, buffers_);
  Waiting needed;
  for (const std::size_t slot : slots) {
    if (waiting_[slot] == 0) return {Code::kInternal, "an exit is asked about a row that it has not seen", "", ""};
    needed.emplace_back(static_cast<std::int64_t>(slot), std::max(waiting_[slot], manifest_.minimum_rows));
  }
  std::sort(needed.begin(), needed.end());
  for (const Range& range : plan_passes(needed, each_pass_, most_).ranges) {
    std::set<std::size_t> ours;
    std::vector<std::pair<std::size_t, std::size_t>> places;  // of those asked, and their newest rows in the pass
    for (std::size_t i = 0; i < slots.size(); ++i) {
      const auto slot = static_cast<std::int64_t>(slots[i]);
      if (slot < range.first || slot >= range.last) continue;
      ours.insert(slots[i]);
      places.emplace_back(i, static_cast<std::size_t>((slot - range.first) * range.rows + waiting_[slots[i]] - 1));
    }
    for (const std::string_view name : kGiven) {
      const auto flat = flat_.find(name);
      if (flat == flat_.end()) continue;
      const int nothing = name == contract::kCandidates ? 0xFF : 0;  // all bits set: -1, candidates yet to be chosen
      std::memset(flat->second.data<std::byte>(), nothing, flat->second.bytes());
      for (const auto& [i, place] : places) copy_row(buffers_.at(std::string(name)), i, flat->second, place);
    }
    if (Status status = run(range, ours); !status.ok()) return status;
    for (const auto& [name, buffer] : buffers_)
      if (name != contract::kHidden && !is_given(name))
        for (const auto& [i, place] : places) copy_row(flat_.at(name), place, buffer, i);
  }
  note(rows, walks, buffers_);
  said(walks, buffers_);
  return {};
}

Status LayerAsker::offer(const float* rows, std::int64_t n, std::size_t slot) {
  const auto own = static_cast<std::int64_t>(slot);
  if (waiting_[slot] + n > wait_ && waiting_[slot] > 0) {
    const Range all{own, own + 1, std::max(waiting_[slot], manifest_.minimum_rows)};
    if (Status status = run(all, {slot}); !status.ok()) return status;
  }
  float* target = rows_.data<float>() + (own * wait_ + waiting_[slot]) * width_;
  std::memcpy(target, rows, static_cast<std::size_t>(n * width_) * sizeof(float));
  waiting_[slot] += n;
  return {};
}

void LayerAsker::rewind(std::int64_t length, std::size_t slot) {
  waiting_[slot] = std::max<std::int64_t>(0, std::min(waiting_[slot], length - filled_[slot]));
  filled_[slot] = std::min(filled_[slot], length);
}

void LayerAsker::leave(std::size_t slot) {
  rewind(0, slot);
  if (const std::int64_t longest = *std::max_element(filled_.begin(), filled_.end()); caches_.spacious(longest)) {
    passes_.clear();
    caches_.shrink(longest);
  }
  caches_.clear(slot, caches_.rows());
}

void LayerAsker::move(std::size_t source, std::size_t target) {
  caches_.move(source, target, filled_[source]);
  copy_row(rows_, source, rows_, target);
  filled_[target] = filled_[source];
  waiting_[target] = waiting_[source];
  leave(source);
}

// Runs what waits in the slots of a range that take part; the others' rows are padding, as in a pool's pass.
Status LayerAsker::run(const Range& range, const std::set<std::size_t>& taking_part) {
  const auto width = static_cast<std::size_t>(width_);
  const std::int64_t last_position = manifest_.model.context + manifest_.slack - 1;
  float* given = flat_.find(contract::kHidden)->second.data<float>();
  std::int64_t* position = positions_.data<std::int64_t>();
  std::int64_t deepest = 0;
  for (std::int64_t at = range.first; at < range.last; ++at) {
    const auto slot = static_cast<std::size_t>(at);
    const auto n = static_cast<std::size_t>(taking_part.count(slot) > 0 ? waiting_[slot] : 0);
    const auto all = static_cast<std::size_t>(range.rows);
    std::memcpy(given, rows_.data<float>() + at * wait_ * width_, n * width * sizeof(float));
    std::fill(given + n * width, given + all * width, 0.0f);
    given += all * width;
    start_.data<std::int64_t>()[at - range.first] = filled_[slot];
    for (std::int64_t row = 0; row < range.rows; ++row) *position++ = std::min(filled_[slot] + row, last_position);
    deepest = std::max(deepest, filled_[slot]);
  }
  if (caches_.make_room(deepest + range.rows, 0)) passes_.clear();
  auto found = passes_.find(range);
  if (found == passes_.end()) {
    Result<std::unique_ptr<Pass>> made = bind(range);
    if (!made.ok()) return made.status();
    if (passes_.size() >= kKeptPasses) passes_.clear();
    found = passes_.emplace(range, std::move(made).value()).first;
  }
  if (Status status = found->second->run(); !status.ok()) return status;
  for (const std::size_t slot : taking_part) {
    filled_[slot] += waiting_[slot];
    waiting_[slot] = 0;
  }
  return {};
}

Result<std::unique_ptr<Pass>> LayerAsker::bind(const Range& range) const {
  const std::int64_t slots = range.last - range.first;
  Buffers buffers;
  for (const auto& [name, tensor] : flat_) buffers[name] = tensor.first(slots * range.rows);
  buffers[std::string(contract::kHidden)].shape = {slots, range.rows, width_};
  buffers[std::string(contract::kPositions)] = positions_.first(slots * range.rows);
  buffers[std::string(contract::kPositions)].shape = {slots, range.rows};
  buffers[std::string(contract::kWriteIndex)] = start_.first(slots);
  caches_.bind(0, range.first, range.last, buffers);
  bind_weights(buffers);
  return engine_->bind(buffers);
}

}  // namespace eecompile
