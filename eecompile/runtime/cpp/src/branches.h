// CUDA graphs with branches: what runs in one launch and decides on the GPU how far it goes (engines/branches.py).
//
// A graph is captured in sections, one behind the other; a section that a branch follows ends with what sets the
// branch's condition. A body, which is a graph too, runs at most once a launch. CUDA lets nothing into it but kernels,
// copies and fills of memory, and branches; an engine whose capture has anything else fails when the whole is
// instantiated.
//
//     CUDA driver API, CU_GRAPH_NODE_TYPE_CONDITIONAL; CUDA 12.4 and later
//
// Thread safety: what takes a Turn belongs to whoever holds it. Cost: a graph's nodes, on the host and on the GPU.
#pragma once

#include <functional>
#include <memory>

#include "conditions.h"
#include "gpu_memory.h"

namespace eecompile {

// A graph, or the body of a branch, while it is made.
class Level {
 public:
  Level(Gpu& gpu, const Gpu::Turn& turn, const Conditions& conditions, CudaGraph graph)
      : gpu_(gpu), turn_(turn), conditions_(conditions), graph_(graph) {}

  const Gpu::Turn& turn() const { return turn_; }

  // Captures what `enqueue` puts into the stream behind what this graph has so far.
  Status section(const std::function<Status()>& enqueue);

  // A condition for one branch of this graph; no section may be open.
  Result<ConditionHandle> condition() const { return conditions_.create(graph_); }

  // As Conditions::ask and ::decide, at the end of a section.
  Status ask(const float* value, double above, double most, std::int32_t* outcome, const ConditionHandle* condition);
  Status decide(const std::uint8_t* flag, bool gated, std::int32_t* outcome, const ConditionHandle& condition);

  // The body of a branch behind the last `ask` or `decide`, or the last branch; no section may be open.
  Result<Level> branch(ConditionHandle condition);

 private:
  Status behind(const Result<CudaGraphNode>& node);

  Gpu& gpu_;
  const Gpu::Turn& turn_;
  const Conditions& conditions_;
  CudaGraph graph_;
  CudaGraphNode last_ = nullptr;
};

// A graph that can be launched again and again. The graph it was made from, which owns its conditions, lives as long.
// Not to be destroyed by who has a Turn.
class BranchingGraph {
 public:
  BranchingGraph(std::shared_ptr<Gpu> gpu, CudaGraph graph, CudaGraphExec made)
      : gpu_(std::move(gpu)), graph_(graph), made_(made) {}
  BranchingGraph(const BranchingGraph&) = delete;
  BranchingGraph& operator=(const BranchingGraph&) = delete;
  ~BranchingGraph();

  Status launch(const Gpu::Turn&) {
    return gpu_->checked(gpu_->driver().cuGraphLaunch(made_, gpu_->stream()), "cuGraphLaunch");
  }

 private:
  std::shared_ptr<Gpu> gpu_;
  CudaGraph graph_;
  CudaGraphExec made_;
};

// A GPU on which such graphs run: its memory, and the plugin library's functions.
class Branches {
 public:
  // kInternal where a small graph of the kind does not do on this GPU what it should.
  static Result<std::shared_ptr<const Branches>> open(std::shared_ptr<Gpu> gpu, std::shared_ptr<GpuMemory> memory,
                                                      Conditions conditions);

  Gpu& gpu() const { return *gpu_; }
  GpuMemory& memory() const { return *memory_; }

  // The graph that `fill` makes of an empty one. kInternal where something cannot be captured, or is not allowed in a
  // branch.
  Result<std::unique_ptr<BranchingGraph>> make(const Gpu::Turn& turn,
                                               const std::function<Status(Level&)>& fill) const;

 private:
  Branches(std::shared_ptr<Gpu> gpu, std::shared_ptr<GpuMemory> memory, Conditions conditions)
      : gpu_(std::move(gpu)), memory_(std::move(memory)), conditions_(conditions) {}

  struct Trial;
  Status try_out() const;
  Status warm(const Gpu::Turn& turn, const Trial& trial) const;

  std::shared_ptr<Gpu> gpu_;
  std::shared_ptr<GpuMemory> memory_;
  Conditions conditions_;
};

}  // namespace eecompile
