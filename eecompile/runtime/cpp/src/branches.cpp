#include "branches.h"

#include <array>
#include <stdexcept>

namespace eecompile {
namespace {

constexpr std::size_t kBlock = 256;  // bytes that the trial copies

// Ends the capture of a stream, also where capturing threw.
class Capture {
 public:
  explicit Capture(Gpu& gpu) : gpu_(gpu) {}
  ~Capture() {
    if (!ended_) end();
  }

  Status end() {
    ended_ = true;
    CudaGraph same = nullptr;
    return gpu_.checked(gpu_.driver().cuStreamEndCapture(gpu_.stream(), &same), "cuStreamEndCapture");
  }

 private:
  Gpu& gpu_;
  bool ended_ = false;
};

// A graph that goes where nobody takes it.
struct Unfinished {
  const CudaDriver& driver;
  CudaGraph graph = nullptr;
  ~Unfinished() {
    if (graph != nullptr) driver.cuGraphDestroy(graph);
  }
};

using Outcomes = std::array<ExitOutcome, 3>;

Outcomes expected(float value, bool fires) {
  if (!(value > 0.5f)) return {ExitOutcome::kRefused, ExitOutcome::kNotReached, ExitOutcome::kAsked};
  if (fires) return {ExitOutcome::kFired, ExitOutcome::kAsked, ExitOutcome::kNotReached};
  return {ExitOutcome::kDeclined, ExitOutcome::kAsked, ExitOutcome::kAsked};
}

}  // namespace

Status Level::section(const std::function<Status()>& enqueue) {
  if (Status status = conditions_.capture(gpu_.stream(), graph_, last_); !status.ok()) return status;
  Capture capture(gpu_);
  Status status = enqueue();
  Status ended = capture.end();
  return status.ok() ? ended : status;
}

Status Level::behind(const Result<CudaGraphNode>& node) {
  if (node.ok()) last_ = *node;
  return node.status();
}

Status Level::ask(const float* value, double above, double most, std::int32_t* outcome,
                  const ConditionHandle* condition) {
  return behind(conditions_.ask(gpu_.stream(), value, above, most, outcome, condition));
}

Status Level::decide(const std::uint8_t* flag, bool gated, std::int32_t* outcome, const ConditionHandle& condition) {
  return behind(conditions_.decide(gpu_.stream(), flag, gated, outcome, &condition));
}

Result<Level> Level::branch(ConditionHandle condition) {
  const Result<Conditions::Branch> made = conditions_.branch(graph_, last_, condition);
  if (!made.ok()) return made.status();
  last_ = made->node;
  return Level(gpu_, turn_, conditions_, made->body);
}

BranchingGraph::~BranchingGraph() {
  const Gpu::Turn turn(*gpu_);
  gpu_->driver().cuGraphExecDestroy(made_);  // before the graph, whose conditions it uses
  gpu_->driver().cuGraphDestroy(graph_);
}

Result<std::unique_ptr<BranchingGraph>> Branches::make(const Gpu::Turn& turn,
                                                       const std::function<Status(Level&)>& fill) const {
  const CudaDriver& driver = gpu_->driver();
  Unfinished unfinished{driver};
  if (Status s = gpu_->checked(driver.cuGraphCreate(&unfinished.graph, 0), "cuGraphCreate"); !s.ok()) return s;
  Level root(*gpu_, turn, conditions_, unfinished.graph);
  if (Status status = fill(root); !status.ok()) return status;
  CudaGraphExec made = nullptr;
  const int code = driver.cuGraphInstantiateWithFlags(&made, unfinished.graph, 0);
  if (Status status = gpu_->checked(code, "cuGraphInstantiate"); !status.ok()) return status;
  return std::make_unique<BranchingGraph>(gpu_, std::exchange(unfinished.graph, nullptr), made);
}

Result<std::shared_ptr<const Branches>> Branches::open(std::shared_ptr<Gpu> gpu, std::shared_ptr<GpuMemory> memory,
                                                       Conditions conditions) {
  const std::shared_ptr<const Branches> made(new Branches(std::move(gpu), std::move(memory), conditions));
  try {
    if (Status status = made->try_out(); !status.ok()) return status;
  } catch (const std::runtime_error& e) {  // of memory
    return Status{Code::kInternal, e.what(), "the GPU", ""};
  }
  return made;
}

// What the small graph reads and writes.
struct Branches::Trial {
  explicit Trial(GpuMemory& memory)
      : given(memory.rows(sizeof(float))), fires(memory.rows(1)), from(memory.cache(kBlock)), to(memory.cache(kBlock)) {
    for (Block& outcome : outcomes) outcome = memory.rows(sizeof(std::int32_t));
  }

  float* value() const { return reinterpret_cast<float*>(given.get()); }
  std::uint8_t* flag() const { return reinterpret_cast<std::uint8_t*>(fires.get()); }
  std::int32_t* outcome(std::size_t i) const { return reinterpret_cast<std::int32_t*>(outcomes[i].get()); }

  // A gate, a head with a copy in it, a decision, and what lies behind it: the kind of graph that decoding makes.
  Status fill(Gpu& gpu, Level& root) const {
    const Result<ConditionHandle> asked = root.condition(), on = root.condition();
    if (!asked.ok() || !on.ok()) return asked.ok() ? on.status() : asked.status();
    Status status = root.section([&] { return root.ask(value(), 0.5, 1.0, outcome(0), &*asked); });
    if (!status.ok()) return status;
    Result<Level> head = root.branch(*asked);
    if (!head.ok()) return head.status();
    status = head->section([&] {
      if (Status copied = gpu.copy(head->turn(), to.get(), from.get(), kBlock); !copied.ok()) return copied;
      return head->ask(value(), 0.5, 1.0, outcome(1), nullptr);
    });
    if (status.ok()) status = root.section([&] { return root.decide(flag(), true, outcome(0), *on); });
    if (!status.ok()) return status;
    Result<Level> deeper = root.branch(*on);
    if (!deeper.ok()) return deeper.status();
    return deeper->section([&] { return deeper->ask(value(), -1.0, 1.0, outcome(2), nullptr); });
  }

  Block given, fires, from, to;
  std::array<Block, 3> outcomes;
};

// Loads the kernels, which no capture may do.
Status Branches::warm(const Gpu::Turn& turn, const Trial& trial) const {
  const CudaStream stream = gpu_->stream();
  if (auto r = conditions_.ask(stream, trial.value(), 0, 1, trial.outcome(0), nullptr); !r.ok()) return r.status();
  if (auto r = conditions_.decide(stream, trial.flag(), false, trial.outcome(0), nullptr); !r.ok()) return r.status();
  return gpu_->wait(turn);
}

// Runs a graph of the kind that decoding makes, every way through it.
Status Branches::try_out() const {
  const Trial trial(*memory_);
  std::unique_ptr<BranchingGraph> graph;  // goes after the turn
  const Gpu::Turn turn(*gpu_);
  if (Status status = warm(turn, trial); !status.ok()) return status;
  Result<std::unique_ptr<BranchingGraph>> made = make(turn, [&](Level& root) { return trial.fill(*gpu_, root); });
  if (!made.ok()) return made.status();
  graph = std::move(made).value();
  for (const auto& [value, fires] : {std::pair{0.9f, true}, {0.9f, false}, {0.1f, true}, {0.9f, true}}) {
    *trial.value() = value;
    *trial.flag() = fires;
    for (std::size_t i = 0; i < 3; ++i) *trial.outcome(i) = 0;
    if (Status status = graph->launch(turn); !status.ok()) return status;
    if (Status status = gpu_->wait(turn); !status.ok()) return status;
    Outcomes found{};
    std::string shown;
    for (std::size_t i = 0; i < 3; ++i) {
      found[i] = static_cast<ExitOutcome>(*trial.outcome(i));
      shown += (i == 0 ? "" : ", ") + std::to_string(*trial.outcome(i));
    }
    if (found != expected(value, fires))
      return {Code::kInternal, "a graph with branches ran wrongly on this GPU: (" + shown + ")", "the GPU", ""};
  }
  return {};
}

}  // namespace eecompile
