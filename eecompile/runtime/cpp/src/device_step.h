// A whole step of one sequence as one CUDA graph, which decides on the GPU how deep it goes (runtime/device_step.py).
//
//     embed -> step 0 -> exit's graph -> if its gate agrees: head -> if it did not fire: step 1 -> .. -> last head
//
// Hidden rows stay on the GPU, in a boundary of their own before each step. How many wait in each the host knows, so
// that their numbers are what a graph is made for and kept by; what changes from step to step (token, positions,
// bounds) lies in memory that both sides see, as do outcomes and tokens, which the host reads when the graph is done.
// It waits once.
//
// A pass has to have run before it is captured (TensorRT). It does so on this step's own inputs: what it writes into
// caches lies behind what is filled, where the step itself writes next or a later one does.
//
// Thread safety: belongs to one session. Cost: for each step pending_cap + 1 rows; a context for each pass and number
// of rows; kKeptGraphs graphs.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "device_exit.h"
#include "staircase.h"

namespace eecompile {

inline constexpr std::size_t kKeptGraphs = 64;

// What a graph is made for. waiting: rows before each step when the token comes; exits: which are asked.
struct StepShape {
  std::vector<std::int64_t> waiting;
  std::vector<std::size_t> exits;

  std::int64_t rows(std::size_t k) const;  // of step k, where the token goes so deep
  bool asks(std::size_t exit) const;
  bool operator==(const StepShape& other) const { return waiting == other.waiting && exits == other.exits; }
};

class DeviceSteps {
 public:
  // rules: of the exits that may be asked; nothing where one is not. exact: whether the last head is asked about every
  // finished row, or about the newest alone. All that is given outlives this.
  static Result<std::unique_ptr<DeviceSteps>> make(const LoadedGraphs& graphs, Staircase& stairs, const Askers& askers,
                                                   const Rules& rules, bool exact);

  const DeviceExit& exit(std::size_t number) const { return *exits_.at(number); }  // of the step that ran last
  std::int64_t asked_rows(const StepShape& shape) const { return exact_ ? shape.rows(steps() - 1) : 1; }

  // Makes ready for a step that embeds `token`: inputs, and a graph if there is none yet. Nothing of the sequence has
  // changed afterwards. kInternal where the step cannot be captured.
  Status prepare(std::int64_t token, const StepShape& shape);

  // Runs the step that was prepared. bounds: of the exits asked, for their heads.
  Status run(const StepShape& shape, const std::map<std::size_t, Bounds>& bounds);

  // What the last head says of the finished rows, oldest first, or of the newest alone; kInternal where it has not run.
  Result<Decisions> finished(const StepShape& shape);

  Status fetch();  // copies what waits from the GPU's boundaries to the host's

 private:
  DeviceSteps(const LoadedGraphs& graphs, Staircase& stairs, bool exact);

  std::size_t steps() const { return boundary_.size() - 1; }
  const Step& step(std::size_t k) const { return stairs_.pool().manifest().schedule[k]; }
  bool apart(std::size_t k) const;
  void place(std::int64_t token, const StepShape& shape);
  Result<std::unique_ptr<BranchingGraph>> made(const StepShape& shape);
  Status bind(const StepShape& shape);
  Status warm(const Gpu::Turn& turn, const StepShape& shape);
  Status bind_step(std::size_t k, std::int64_t rows);
  Status descend(Level level, std::size_t first, const StepShape& shape);
  Status finish(Level& level, std::size_t first, const StepShape& shape);
  Status walk(const Gpu::Turn& turn, std::size_t first, std::size_t last, const StepShape& shape);
  Status copy_newest(const Gpu::Turn& turn, std::int64_t have, std::int64_t rows, const Tensor& from, void* to);

  const LoadedGraphs& graphs_;
  Staircase& stairs_;
  bool exact_;
  std::int64_t rows_, width_;
  Tensor ids_, out_, last_;
  std::vector<Tensor> positions_, starts_, boundary_;
  std::map<std::size_t, std::unique_ptr<DeviceExit>> exits_;
  std::unique_ptr<DevicePass> embed_;
  std::map<std::pair<std::size_t, std::int64_t>, std::unique_ptr<DevicePass>> passes_;  // by step and rows
  std::map<std::int64_t, DeviceHead> finals_;                                           // by rows
  std::list<std::pair<StepShape, std::unique_ptr<BranchingGraph>>> kept_;               // the last used first
};

}  // namespace eecompile
