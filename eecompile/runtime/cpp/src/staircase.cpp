#include "staircase.h"

#include <algorithm>
#include <cstring>

namespace eecompile {

Staircase::Staircase(Pool& pool)
    : pool_(pool),
      filled_(pool.manifest().schedule.size()),
      waiting_(filled_.size() + 1),  // finished rows, in the last boundary, wait for nothing
      left_(waiting_.size()),
      skipped_(filled_.size()),
      alone_{this},
      slot_(pool.join(*this)) {
  newest_ = pool.boundary(0, slot_);
}

void Staircase::watch(const Askers& askers, const Rules& rules) {
  watchers_.clear();
  for (std::size_t exit = 0; exit < rules.size(); ++exit)
    if (auto* const asker = rules[exit] ? dynamic_cast<LayerAsker*>(askers[exit].get()) : nullptr)
      watchers_[exit] = asker;
}

void Staircase::reset() {
  pool_.reset();
  rewind(0);
  for (const auto& [exit, watcher] : watchers_) watcher->leave(slot_);
  passes_ = layer_rows_ = 0;
}

void Staircase::rewind(std::int64_t length) {
  length_ = length;
  for (std::int64_t& filled : filled_) filled = std::min(filled, length);
  for (auto* counts : {&waiting_, &left_, &skipped_}) std::fill(counts->begin(), counts->end(), 0);
  for (const auto& [exit, watcher] : watchers_) watcher->rewind(length, slot_);
}

Status Staircase::append(const std::int64_t* tokens, std::int64_t count) {
  return pool_.embed(alone_, {{tokens, count}});
}

Status Staircase::run_step(std::size_t k) { return pool_.run_step(k, alone_); }

Status Staircase::prefill(const Ids& tokens) {
  const auto all = static_cast<std::int64_t>(tokens.size()), most = pool_.manifest().prefill_rows;
  pool_.make_room(length_ + all);
  for (std::int64_t start = 0; start < all; start += most) {
    if (Status status = append(tokens.data() + start, std::min(most, all - start)); !status.ok()) return status;
    for (std::size_t k = 0; k < steps(); ++k)
      if (Status status = run_step(k); !status.ok()) return status;
  }
  return {};
}

void Staircase::store(std::size_t k, const float* rows, std::int64_t count) {
  const std::int64_t width = pool_.manifest().model.hidden;
  float* target = pool_.boundary(k, slot_) + waiting_[k] * width;
  std::memcpy(target, rows, static_cast<std::size_t>(count * width) * sizeof(float));
  newest_ = target;
  newest_rows_ = count;
}

void Staircase::wait(std::size_t k, std::int64_t count) {
  if (k < steps()) waiting_[k] += count;
}

void Staircase::embedded(const float* rows, std::int64_t count) {
  store(0, rows, count);
  entered(count);
}

void Staircase::entered(std::int64_t count) {
  length_ += count;
  wait(0, count);
}

Status Staircase::ran(std::size_t k, const float* rows) {
  const std::int64_t n = waiting_[k];
  store(k + 1, rows, n);
  went(k);
  const std::optional<std::size_t>& exit = pool_.manifest().schedule[k].exit;
  const auto watcher = exit ? watchers_.find(*exit) : watchers_.end();
  return watcher == watchers_.end() ? Status{} : watcher->second->offer(newest_, n, slot_);
}

void Staircase::went(std::size_t k) {
  const std::int64_t n = waiting_[k];
  waiting_[k] = 0;
  filled_[k] += n;
  wait(k + 1, n);
  ++passes_;
  layer_rows_ += n * pool_.layers(k);
}

void Staircase::ran_again(std::size_t k, std::int64_t count) {
  ++passes_;
  layer_rows_ += count * pool_.layers(k);
}

void Staircase::leave_at(std::size_t k) { left_[k] = waiting_[k]; }

void Staircase::stop_at(std::size_t k) {
  for (std::size_t step = k; step < steps(); ++step) skipped_[step] += waiting_[k];
  waiting_[k] = 0;
}

void Staircase::propagated(std::size_t k) {
  const std::int64_t n = left_[k], rest = waiting_[k] - n, width = pool_.manifest().model.hidden;
  float* rows = pool_.boundary(k, slot_);
  filled_[k] += n;
  store(k + 1, rows, n);
  wait(k + 1, n);
  if (k + 1 < steps()) left_[k + 1] += n;
  std::memmove(rows, rows + n * width, static_cast<std::size_t>(rest * width) * sizeof(float));
  waiting_[k] = rest;
  left_[k] = 0;
}

void Staircase::move(std::size_t slot) {
  for (const auto& [exit, watcher] : watchers_) watcher->move(slot_, slot);
  slot_ = slot;
}

void Staircase::leave() {
  for (const auto& [exit, watcher] : watchers_) watcher->leave(slot_);
  pool_.leave(*this);
}

}  // namespace eecompile
