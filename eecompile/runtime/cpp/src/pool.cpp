#include "pool.h"

#include <algorithm>
#include <cstring>

#include "eecompile/contract.h"
#include "staircase.h"

namespace eecompile {
namespace {

constexpr std::int64_t kKeptRows = 512;  // of a cache that the next sequence takes over

std::vector<const GraphInfo*> writers(const Manifest& m, const LoadedGraphs& graphs) {
  std::vector<const GraphInfo*> found(m.caches.size());
  for (const Step& step : m.schedule) found[step.cache] = &graphs.segments[step.segment]->info();
  return found;
}

std::size_t floats(std::int64_t rows, std::int64_t width) {  // bytes of rows
  return static_cast<std::size_t>(rows * width) * sizeof(float);
}

}  // namespace

Pool::Pool(const Manifest& m, const LoadedGraphs& graphs, std::size_t slots, double each_pass)
    : manifest_(m),
      graphs_(graphs),
      slots_(slots),
      each_pass_(each_pass),
      wait_(std::max({m.prefill_rows, m.pending_cap + 1, m.minimum_rows})),
      most_(std::max(wait_, static_cast<std::int64_t>(slots))),
      caches_(writers(m, graphs), graphs.embed->memory(), static_cast<std::int64_t>(slots)) {
  const auto count = static_cast<std::int64_t>(slots);
  for (std::size_t k = 0; k <= m.schedule.size(); ++k)
    boundary_.emplace_back("float32", std::vector<std::int64_t>{count, wait_, m.model.hidden});
  Memory& memory = graphs.memory();
  in_ = Tensor(memory, "float32", {most_, m.model.hidden});
  out_ = Tensor(memory, "float32", {most_, m.model.hidden});
  ids_ = Tensor(memory, "int64", {most_});
  positions_ = Tensor(memory, "int64", {most_});
  start_ = Tensor(memory, "int64", {count});
}

std::int64_t Pool::layers(std::size_t k) const { return manifest_.segments[manifest_.schedule[k].segment].layers; }

float* Pool::boundary(std::size_t k, std::size_t slot) const {
  return boundary_[k].data<float>() + static_cast<std::int64_t>(slot) * wait_ * manifest_.model.hidden;
}

Result<Ids> Pool::take_up(const Ids& prompt) {
  if (!manifest_.source) return prompt;
  Result<Source> source = encode_source(*graphs_.encoder, manifest_.model, prompt);
  if (!source.ok()) return source.status();
  bound_.clear();  // bindings know the source before
  source_ = std::move(*source);
  return Ids{manifest_.source->start};
}

Status Pool::embed(const Stairs& stairs, const std::vector<Tokens>& tokens) {
  std::int64_t rows = 0;
  for (const Tokens& some : tokens) {
    std::copy_n(some.ids, some.count, ids_.data<std::int64_t>() + rows);
    rows += some.count;
  }
  if (Status status = pass({0, 0, 0, 1, rows}); !status.ok()) return status;
  const float* made = out_.data<float>();
  for (std::size_t i = 0; i < stairs.size(); ++i) {
    stairs[i]->embedded(made, tokens[i].count);
    made += tokens[i].count * manifest_.model.hidden;
  }
  return {};
}

Status Pool::run_step(std::size_t k, const Stairs& stairs) {
  const auto left = [&](const Staircase* one) { return one->left(k) > 0; };
  if (std::any_of(stairs.begin(), stairs.end(), left))
    if (Status status = fill(k, stairs); !status.ok()) return status;
  if (stairs.size() != 1) return run_ranges(k, waiting(k, stairs), stairs, false);
  const auto slot = static_cast<std::int64_t>(stairs[0]->slot());
  return run_range(k, {slot, slot + 1, std::max(stairs[0]->waiting(k), manifest_.minimum_rows)}, stairs, false);
}

Status Pool::fill(std::size_t k, const Stairs& stairs) {
  Waiting rows;
  for (const Staircase* one : stairs)
    if (one->left(k) > 0)
      rows.emplace_back(static_cast<std::int64_t>(one->slot()), std::max(one->left(k), manifest_.minimum_rows));
  std::sort(rows.begin(), rows.end());
  return rows.empty() ? Status{} : run_ranges(k, rows, stairs, true);
}

Waiting Pool::waiting(std::size_t k, const Stairs& stairs) const {
  Waiting found;
  for (const Staircase* one : stairs)
    if (one->waiting(k) > 0)
      found.emplace_back(static_cast<std::int64_t>(one->slot()), std::max(one->waiting(k), manifest_.minimum_rows));
  std::sort(found.begin(), found.end());
  return found;
}

Status Pool::run_ranges(std::size_t k, const Waiting& rows, const Stairs& stairs, bool kv) {
  Stairs taking_part(slots_.size(), nullptr);
  for (Staircase* one : stairs)
    if ((kv ? one->left(k) : one->waiting(k)) > 0) taking_part[one->slot()] = one;
  for (const Range& range : plan_passes(rows, each_pass_, most_).ranges) {
    const Stairs some(taking_part.begin() + range.first, taking_part.begin() + range.last);
    if (Status status = run_range(k, range, some, kv); !status.ok()) return status;
  }
  return {};
}

// One pass over a range of slots; `stairs` are those that take part, by slot, null where none does.
Status Pool::run_range(std::size_t k, const Range& range, const Stairs& stairs, bool kv) {
  const std::int64_t width = manifest_.model.hidden;
  std::vector<Place> places;
  float* given = in_.data<float>();
  for (std::size_t i = 0; i < stairs.size(); ++i) {
    const std::size_t slot = static_cast<std::size_t>(range.first) + i;
    const std::int64_t n = stairs[i] == nullptr ? 0 : kv ? stairs[i]->left(k) : stairs[i]->waiting(k);
    std::memcpy(given, boundary(k, slot), floats(n, width));
    std::memset(given + n * width, 0, floats(range.rows - n, width));
    given += range.rows * width;
    const Staircase* idle = slots_[slot];
    places.push_back(idle == nullptr ? Place{} : Place{idle->filled(k), idle->position(k)});
  }
  place(k, places, range.rows);
  if (Status status = pass({static_cast<std::int64_t>(k) + 1, kv, range.first, range.last, range.rows}); !status.ok())
    return status;
  if (!kv && graphs_.cycles.count(k) > 0) return repeat(k, range, stairs);
  const float* made = out_.data<float>();
  for (Staircase* one : stairs) {
    if (one != nullptr && kv) one->propagated(k);
    if (one != nullptr && !kv)
      if (Status status = one->ran(k, made); !status.ok()) return status;
    made += range.rows * width;
  }
  return {};
}

// What a pass made, with each row at its last run, every sequence's on its own.
Status Pool::repeat(std::size_t k, const Range& range, const Stairs& stairs) {
  const std::int64_t width = manifest_.model.hidden, all = static_cast<std::int64_t>(stairs.size()) * range.rows;
  const std::vector<float> inputs(in_.data<float>(), in_.data<float>() + all * width);
  std::vector<float> made(out_.data<float>(), out_.data<float>() + all * width);
  for (std::size_t i = 0; i < stairs.size(); ++i) {
    if (stairs[i] == nullptr) continue;
    const std::int64_t at = static_cast<std::int64_t>(i) * range.rows * width;
    const RunRows run = [&](const float* rows, std::int64_t count, std::int64_t first, float* out) {
      Status status = again(k, *stairs[i], rows, count, first);
      if (status.ok()) std::memcpy(out, out_.data<float>(), floats(count, width));
      return status;
    };
    const std::int64_t n = stairs[i]->waiting(k);
    Status status = settle(graphs_.cycles.at(k), inputs.data() + at, made.data() + at, n, run);
    if (status.ok()) status = stairs[i]->ran(k, made.data() + at);
    if (!status.ok()) return status;
  }
  return {};
}

// Runs step k once more on rows [count, D] of one sequence, into out_; the first is number `first` of its pass's.
Status Pool::again(std::size_t k, Staircase& one, const float* rows, std::int64_t count, std::int64_t first) {
  const std::int64_t width = manifest_.model.hidden, padded = std::max(count, manifest_.minimum_rows);
  std::memcpy(in_.data<float>(), rows, floats(count, width));
  std::memset(in_.data<float>() + count * width, 0, floats(padded - count, width));
  place(k, {Place{one.filled(k) + first, one.position(k) + first}}, padded);
  const auto slot = static_cast<std::int64_t>(one.slot());
  one.ran_again(k, count);
  return pass({static_cast<std::int64_t>(k) + 1, 0, slot, slot + 1, padded});
}

// Says where the slots of step k's next pass begin, and has room.
void Pool::place(std::size_t k, const std::vector<Place>& places, std::int64_t rows) {
  const auto step = static_cast<std::int64_t>(k) + 1;
  const std::int64_t last = manifest_.model.context + manifest_.slack - 1;
  std::int64_t *position = positions_.data<std::int64_t>(), *start = start_.data<std::int64_t>(), deepest = 0;
  for (const Place& at : places) {
    *start++ = at.row;
    deepest = std::max(deepest, at.row);
    for (std::int64_t row = 0; row < rows; ++row) *position++ = std::min(at.position + row, last);
  }
  if (caches_.make_room(deepest + rows, manifest_.schedule[k].cache))
    bound_.erase(bound_.lower_bound({step}), bound_.lower_bound({step + 1}));
}

void Pool::make_room(std::int64_t rows) {
  for (const Step& step : manifest_.schedule)
    if (caches_.make_room(rows, step.cache)) bound_.clear();
}

std::size_t Pool::join(Staircase& one) {
  const auto free = std::find(slots_.begin(), slots_.end(), nullptr);
  *free = &one;
  return static_cast<std::size_t>(free - slots_.begin());
}

void Pool::leave(const Staircase& one) {
  slots_[one.slot()] = nullptr;
  std::int64_t longest = 0;
  for (const Staircase* other : slots_)
    if (other != nullptr) longest = std::max(longest, other->length());
  shrink(longest);
  caches_.clear(one.slot(), one.length() + manifest_.prefill_rows);
}

// Gives back what is too long by far; bindings go first, so that none is stale should memory run out on the way.
void Pool::shrink(std::int64_t longest) {
  if (!caches_.spacious(longest)) return;
  bound_.clear();
  caches_.shrink(longest);
}

bool Pool::close_gap() {
  const auto free = static_cast<std::size_t>(std::find(slots_.begin(), slots_.end(), nullptr) - slots_.begin());
  std::size_t highest = slots_.size();
  while (highest > 0 && slots_[highest - 1] == nullptr) --highest;
  if (highest <= free + 1) return false;  // `highest` is one past it
  Staircase& one = *slots_[--highest];
  caches_.move(highest, free, one.filled(0));
  caches_.clear(highest, one.length() + manifest_.prefill_rows);
  for (std::size_t k = 0; k < manifest_.schedule.size(); ++k)
    std::memcpy(boundary(k, free), boundary(k, highest), floats(one.waiting(k), manifest_.model.hidden));
  one.move(free);
  slots_[free] = &one;
  slots_[highest] = nullptr;
  return true;
}

void Pool::reset() {
  if (caches_.rows() > kKeptRows) shrink(0);
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) caches_.clear(slot, caches_.rows());
}

// The pass that fills a boundary (or only the caches before it) for a range of slots, from in_ or token ids into out_.
// Bindings of decode passes are kept; those of prefill chunks of odd sizes are made anew.
Status Pool::pass(const Key& key) {
  auto found = bound_.find(key);
  if (found == bound_.end()) {
    Result<std::unique_ptr<Pass>> made = bind(key);
    if (!made.ok()) return made.status();
    const std::int64_t rows = key.back();
    if (rows > manifest_.pending_cap + 2 && rows != manifest_.prefill_rows) return made.value()->run();
    found = bound_.emplace(key, std::move(made).value()).first;
  }
  return found->second->run();
}

Result<std::unique_ptr<Pass>> Pool::bind(const Key& key) const {
  const auto [boundary, kv, first, last, rows] = key;
  const std::int64_t slots = last - first;
  Buffers buffers;
  const auto add = [&](std::string_view name, const Tensor& tensor, std::vector<std::int64_t> shape) {
    buffers[std::string(name)] = {tensor.buffer().data, tensor.dtype(), std::move(shape)};
  };
  add(contract::kHiddenOut, out_, {slots, rows, manifest_.model.hidden});
  if (boundary == 0) {
    add(contract::kTokenIds, ids_, {1, rows});
    return graphs_.embed->bind(buffers);
  }
  const auto k = static_cast<std::size_t>(boundary - 1);
  const Step& step = manifest_.schedule[k];
  add(contract::kHidden, in_, {slots, rows, manifest_.model.hidden});
  add(contract::kPositions, positions_, {slots, rows});
  add(contract::kWriteIndex, start_, {slots});
  caches_.bind(step.cache, first, last, buffers);
  for (const auto& [name, buffer] : source_.buffers) buffers[name] = buffer;
  for (const auto& [name, tensor] : graphs_.factors[k]) buffers[name] = tensor.buffer();
  return (kv != 0 ? graphs_.kv : graphs_.segments)[step.segment]->bind(buffers);
}

}  // namespace eecompile
