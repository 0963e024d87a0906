#include "device_step.h"

#include <algorithm>
#include <numeric>

#include "eecompile/contract.h"

namespace eecompile {
namespace {

constexpr std::int64_t kNotRun = -1;  // a token before its head has run

// The first rows of a block [.., D], in the shape [.., rows, D].
Buffer rows_of(const Tensor& block, std::vector<std::int64_t> shape) {
  Buffer found = block.buffer();
  shape.push_back(found.shape.back());
  found.shape = std::move(shape);
  return found;
}

std::int64_t row_bytes(std::int64_t rows, std::int64_t width) {
  return rows * width * static_cast<std::int64_t>(sizeof(float));
}

}  // namespace

std::int64_t StepShape::rows(std::size_t k) const {
  return std::accumulate(waiting.begin(), waiting.begin() + static_cast<std::ptrdiff_t>(k) + 1, std::int64_t{1});
}

bool StepShape::asks(std::size_t exit) const { return std::find(exits.begin(), exits.end(), exit) != exits.end(); }

DeviceSteps::DeviceSteps(const LoadedGraphs& graphs, Staircase& stairs, bool exact)
    : graphs_(graphs),
      stairs_(stairs),
      exact_(exact),
      rows_(stairs.pool().manifest().pending_cap + 1),
      width_(stairs.pool().manifest().model.hidden) {
  GpuMemory& memory = graphs.branches->memory();
  const auto rows = [&] { return Tensor::cache(memory, "float32", {rows_, width_}); };
  ids_ = Tensor(memory, "int64", {1, 1});
  out_ = rows();
  last_ = rows();
  boundary_.push_back(rows());
  for (std::size_t k = 0; k < stairs.steps(); ++k) {
    boundary_.push_back(rows());
    positions_.push_back(Tensor(memory, "int64", {rows_}));
    starts_.push_back(Tensor(memory, "int64", {1}));
  }
}

Result<std::unique_ptr<DeviceSteps>> DeviceSteps::make(const LoadedGraphs& graphs, Staircase& stairs,
                                                       const Askers& askers, const Rules& rules, bool exact) {
  std::unique_ptr<DeviceSteps> made(new DeviceSteps(graphs, stairs, exact));
  for (std::size_t exit = 0; exit < rules.size(); ++exit) {
    if (!rules[exit]) continue;
    const std::string& name = stairs.pool().manifest().exits[exit].head;
    const Engine& head = *(name == contract::kFullHead ? graphs.head : graphs.heads.at(name));
    Result<std::unique_ptr<DeviceExit>> bound =
        DeviceExit::bind(graphs.branches->memory(), *askers[exit], head, *rules[exit], made->width_);
    if (!bound.ok()) return bound.status();
    made->exits_[exit] = std::move(bound).value();
  }
  return made;
}

Status DeviceSteps::prepare(std::int64_t token, const StepShape& shape) {
  place(token, shape);
  const auto found = std::find_if(kept_.begin(), kept_.end(), [&](const auto& kept) { return kept.first == shape; });
  if (found != kept_.end()) {
    kept_.splice(kept_.begin(), kept_, found);
    return {};
  }
  Result<std::unique_ptr<BranchingGraph>> graph = made(shape);
  if (!graph.ok()) return graph.status();
  kept_.emplace_front(shape, std::move(graph).value());
  if (kept_.size() > kKeptGraphs) kept_.pop_back();
  return {};
}

// The inputs of a step.
void DeviceSteps::place(std::int64_t token, const StepShape& shape) {
  *ids_.data<std::int64_t>() = token;
  for (std::size_t k = 0; k < steps(); ++k) {
    const std::int64_t first = stairs_.filled(k);
    *starts_[k].data<std::int64_t>() = first;
    std::iota(positions_[k].data<std::int64_t>(), positions_[k].data<std::int64_t>() + shape.rows(k), first);
  }
}

Status DeviceSteps::run(const StepShape& shape, const std::map<std::size_t, Bounds>& bounds) {
  for (const std::size_t exit : shape.exits) exits_.at(exit)->clear(bounds.at(exit));
  const std::int64_t rows = asked_rows(shape);
  std::fill_n(finals_.at(rows).tokens(), rows, kNotRun);
  Gpu& gpu = graphs_.branches->gpu();
  const Gpu::Turn turn(gpu);
  const PassClock clock;
  if (Status status = kept_.front().second->launch(turn); !status.ok()) return status;
  return gpu.wait(turn);
}

Result<Decisions> DeviceSteps::finished(const StepShape& shape) {
  const std::int64_t rows = asked_rows(shape);
  const DeviceHead& head = finals_.at(rows);
  if (std::count(head.tokens(), head.tokens() + rows, kNotRun) > 0) return unfinished();
  return head.decisions();
}

Status DeviceSteps::fetch() {
  Gpu& gpu = graphs_.branches->gpu();
  const Gpu::Turn turn(gpu);
  for (std::size_t k = 0; k < steps(); ++k) {
    const auto bytes = static_cast<std::size_t>(row_bytes(stairs_.waiting(k), width_));
    if (bytes == 0) continue;
    const int code = gpu.driver().cuMemcpyDtoHAsync_v2(
        stairs_.pool().boundary(k, stairs_.slot()),
        reinterpret_cast<DeviceAddress>(boundary_[k].data<std::byte>()), bytes, gpu.stream());
    if (Status status = gpu.checked(code, "cuMemcpyDtoHAsync"); !status.ok()) return status;
  }
  return gpu.wait(turn);
}

Result<std::unique_ptr<BranchingGraph>> DeviceSteps::made(const StepShape& shape) {
  if (Status status = bind(shape); !status.ok()) return status;
  const Branches& branches = *graphs_.branches;
  const Gpu::Turn turn(branches.gpu());
  if (Status status = warm(turn, shape); !status.ok()) return status;
  return branches.make(turn, [&](Level& root) { return descend(root, 0, shape); });
}

// Binds every pass of a step, which may allocate, as a capture must not.
Status DeviceSteps::bind(const StepShape& shape) {
  if (!embed_) {
    Result<std::unique_ptr<DevicePass>> pass =
        on_device(graphs_.embed->bind({{std::string(contract::kTokenIds), ids_.buffer()},
                                       {std::string(contract::kHiddenOut), rows_of(boundary_[0], {1, 1})}}));
    if (!pass.ok()) return pass.status();
    embed_ = std::move(pass).value();
  }
  for (std::size_t k = 0; k < steps(); ++k)
    if (passes_.count({k, shape.rows(k)}) == 0)
      if (Status status = bind_step(k, shape.rows(k)); !status.ok()) return status;
  const std::int64_t rows = asked_rows(shape);
  if (finals_.count(rows) > 0) return {};
  Result<DeviceHead> head = DeviceHead::bind(*graphs_.head, rows_of(last_, {rows}));
  if (!head.ok()) return head.status();
  finals_.emplace(rows, std::move(head).value());
  return {};
}

Status DeviceSteps::bind_step(std::size_t k, std::int64_t rows) {
  Buffers buffers;
  buffers[std::string(contract::kHidden)] = rows_of(boundary_[k], {1, rows});
  buffers[std::string(contract::kHiddenOut)] = rows_of(apart(k) ? out_ : boundary_[k + 1], {1, rows});
  buffers[std::string(contract::kPositions)] = Buffer{positions_[k].data<std::byte>(), "int64", {1, rows}};
  buffers[std::string(contract::kWriteIndex)] = starts_[k].buffer();
  const auto slot = static_cast<std::int64_t>(stairs_.slot());
  stairs_.pool().caches().bind(step(k).cache, slot, slot + 1, buffers);
  for (const auto& [name, tensor] : graphs_.factors[k]) buffers[name] = tensor.buffer();
  Result<std::unique_ptr<DevicePass>> pass = on_device(graphs_.segments[step(k).segment]->bind(buffers));
  if (!pass.ok()) return pass.status();
  passes_[{k, rows}] = std::move(pass).value();
  return {};
}

// Runs every pass of a step that has not run yet.
Status DeviceSteps::warm(const Gpu::Turn& turn, const StepShape& shape) {
  std::vector<DevicePass*> all = {embed_.get()};
  for (std::size_t k = 0; k < steps(); ++k) all.push_back(passes_.at({k, shape.rows(k)}).get());
  for (const std::size_t exit : shape.exits)
    for (DevicePass* own : {&exits_.at(exit)->pass(), &exits_.at(exit)->head_pass()}) all.push_back(own);
  all.push_back(&finals_.at(asked_rows(shape)).pass());
  for (DevicePass* one : all)
    if (Status status = one->warm(turn); !status.ok()) return status;
  return graphs_.branches->gpu().wait(turn);
}

// Captures the way down from step `first` on, into a graph or a branch's body.
Status DeviceSteps::descend(Level level, std::size_t first, const StepShape& shape) {
  std::size_t k = first;
  while (k < steps() && !(step(k).exit && shape.asks(*step(k).exit))) ++k;
  if (k == steps()) return finish(level, first, shape);
  DeviceExit& exit = *exits_.at(*step(k).exit);
  std::optional<ConditionHandle> asks;
  if (exit.gated()) {
    const Result<ConditionHandle> condition = level.condition();
    if (!condition.ok()) return condition.status();
    asks = *condition;
  }
  const Result<ConditionHandle> goes_on = level.condition();
  if (!goes_on.ok()) return goes_on.status();
  Status status = level.section([&] {
    if (Status walked = walk(level.turn(), first, k, shape); !walked.ok()) return walked;
    Status copied = copy_newest(level.turn(), shape.rows(k), 1, out_, exit.row());
    return copied.ok() ? exit.enqueue(level, asks ? &*asks : nullptr, *goes_on) : copied;
  });
  if (status.ok() && asks) status = exit.enqueue_head(level, *asks, *goes_on);
  if (!status.ok()) return status;
  Result<Level> deeper = level.branch(*goes_on);
  return deeper.ok() ? descend(*deeper, k + 1, shape) : deeper.status();
}

// The way from step `first` to the last head, which nothing branches off.
Status DeviceSteps::finish(Level& level, std::size_t first, const StepShape& shape) {
  const std::int64_t have = shape.rows(steps() - 1), rows = asked_rows(shape);
  return level.section([&] {
    if (Status status = walk(level.turn(), first, steps() - 1, shape); !status.ok()) return status;
    Status status = copy_newest(level.turn(), have, rows, boundary_.back(), last_.data<std::byte>());
    return status.ok() ? finals_.at(rows).pass().enqueue(level.turn()) : status;
  });
}

// Puts the steps from `first` to `last` into the stream.
Status DeviceSteps::walk(const Gpu::Turn& turn, std::size_t first, std::size_t last, const StepShape& shape) {
  if (first == 0)
    if (Status status = embed_->enqueue(turn); !status.ok()) return status;
  for (std::size_t k = first; k <= last; ++k) {
    if (Status status = passes_.at({k, shape.rows(k)})->enqueue(turn); !status.ok()) return status;
    if (!apart(k)) continue;
    const std::int64_t waits = k + 1 < steps() ? shape.waiting[k + 1] : 0;
    const auto bytes = static_cast<std::size_t>(row_bytes(shape.rows(k), width_));
    std::byte* target = boundary_[k + 1].data<std::byte>() + row_bytes(waits, width_);
    if (Status status = graphs_.branches->gpu().copy(turn, target, out_.data<std::byte>(), bytes); !status.ok())
      return status;
  }
  return {};
}

// Whether rows may wait behind step k, so that its output cannot be where they lie.
bool DeviceSteps::apart(std::size_t k) const { return step(k).exit && exits_.count(*step(k).exit) > 0; }

// Copies the last `rows` of the first `have` rows.
Status DeviceSteps::copy_newest(const Gpu::Turn& turn, std::int64_t have, std::int64_t rows, const Tensor& from,
                                void* to) {
  const std::byte* source = from.data<std::byte>() + row_bytes(have - rows, width_);
  return graphs_.branches->gpu().copy(turn, to, source, static_cast<std::size_t>(row_bytes(rows, width_)));
}

}  // namespace eecompile
