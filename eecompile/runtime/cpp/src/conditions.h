// The exit decision's library, its other half: kernels and calls for CUDA graphs with conditional nodes, by their C
// functions (plugins/conditions.py, plugins/exit_decision/conditions.cpp). tests/engines/native/declared.cpp holds
// these declarations against their definitions.
//
// Nothing here knows what a graph computes. Thread safety: belongs to whoever holds the GPU's turn. Cost: the library,
// which stays loaded.
#pragma once

#include <cstdint>
#include <string>

#include "eecompile/status.h"
#include "gpu_driver.h"

namespace eecompile {

inline constexpr const char* kMakePlugin = "compile it on this machine: cmake on eecompile/plugins/exit_decision";

// What became of an exit in a step (condition.h). kNotReached is what the host leaves there; kAsked nobody sees.
enum class ExitOutcome : std::int32_t { kNotReached = 0, kRefused = 1, kAsked = 2, kDeclined = 3, kFired = 4 };

using ConditionHandle = unsigned long long;

// Name behind eecompile_condition_, and arguments; all of them return 0 where they succeed.
#define EECOMPILE_CONDITIONS(X)                                                                                        \
  X(available, ())                                                                                                     \
  X(capture, (CudaStream, CudaGraph, CudaGraphNode))                                                                   \
  X(create, (CudaGraph, ConditionHandle*))                                                                             \
  X(ask, (CudaStream, const float*, double, double, std::int32_t*, const ConditionHandle*, CudaGraphNode*))            \
  X(decide, (CudaStream, const std::uint8_t*, int, std::int32_t*, const ConditionHandle*, CudaGraphNode*))             \
  X(branch, (CudaGraph, CudaGraphNode, ConditionHandle, CudaGraphNode*, CudaGraph*))

struct ConditionFunctions {
#define EECOMPILE_MEMBER(name, arguments) int(*name) arguments = nullptr;
  EECOMPILE_CONDITIONS(EECOMPILE_MEMBER)
#undef EECOMPILE_MEMBER
};

class Conditions {
 public:
  // The functions of the library at `path`. kMissingBackend where it cannot be opened, is older than them, or library
  // or driver know no such nodes.
  static Result<Conditions> open(const std::string& path);

  // Begins to capture a stream's work into a graph, behind node `after`, if any; cuStreamEndCapture ends it. This and
  // the others: kInternal where CUDA refuses.
  Status capture(CudaStream stream, CudaGraph graph, CudaGraphNode after) const;

  // A condition for one node of a graph: 0 at each launch, until something sets it.
  Result<ConditionHandle> create(CudaGraph graph) const;

  // Puts into the stream what sets `outcome` by `value`: kAsked where it is above `above` and at most `most`, else
  // kRefused; and `condition`, if any, to whether it is kAsked. The node, where this is captured.
  Result<CudaGraphNode> ask(CudaStream stream, const float* value, double above, double most, std::int32_t* outcome,
                            const ConditionHandle* condition) const;

  // Puts into the stream what sets `outcome` by `flag`: kFired or kDeclined, but where a gate has kRefused; and
  // `condition` to whether it is not kFired. gated: `ask` came before. Returns as `ask`.
  Result<CudaGraphNode> decide(CudaStream stream, const std::uint8_t* flag, bool gated, std::int32_t* outcome,
                               const ConditionHandle* condition) const;

  // A node of a graph, and its body: an empty graph, which runs where the condition is not 0.
  struct Branch {
    CudaGraphNode node = nullptr;
    CudaGraph body = nullptr;
  };
  Result<Branch> branch(CudaGraph graph, CudaGraphNode after, ConditionHandle condition) const;

 private:
  Conditions() = default;

  ConditionFunctions functions_;
};

}  // namespace eecompile
