// A double of what the plugin library's C interface for graphs with branches (exit_decision/conditions.cpp, compiled
// with this) stands on: five functions of CUDA's runtime, and its kernels, which run on the host, late.
#include <condition.cuh>
#include <cuda_runtime_api.h>
#include <kernel.cuh>

#include "doubles.h"

using namespace doubles;

namespace {

int inside_all(const void* read, std::size_t bytes, const void* written) {
  inside(read, bytes, true);
  inside(written, sizeof(std::int32_t), true);
  return 0;
}

void set(bool given, Condition condition, bool value) {
  if (given) set_condition(condition, value);
}

}  // namespace

namespace eecompile {

cudaError_t launch_ask(const float* value, double above, double most, std::int32_t* outcome, const unsigned long long* condition,
                       cudaStream_t stream) {
  inside_all(value, sizeof *value, outcome);
  add_work(stream, [=, given = condition != nullptr, handle = condition ? *condition : 0] {
    *outcome = asked(*value, above, most);
    set(given, handle, *outcome == kAsked);
  });
  return cudaSuccess;
}

cudaError_t launch_decide(const std::uint8_t* flag, bool gated, std::int32_t* outcome, const unsigned long long* condition,
                          cudaStream_t stream) {
  inside_all(flag, sizeof *flag, outcome);
  add_work(stream, [=, given = condition != nullptr, handle = condition ? *condition : 0] {
    *outcome = decided(gated ? Outcome(*outcome) : kAsked, *flag != 0);
    set(given, handle, *outcome != kFired);
  });
  return cudaSuccess;
}

}  // namespace eecompile

extern "C" {
cudaError_t CUDARTAPI cudaDriverGetVersion(int* version) {
  return *version = setting("branches", "right") == "old" ? 12030 : 13020, cudaSuccess;
}
cudaError_t CUDARTAPI cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                               unsigned long long*, cudaGraph_t*, const cudaGraphNode_t** nodes,
                                               const cudaGraphEdgeData**, std::size_t* count) {
  static thread_local cudaGraphNode_t last;
  last = last_node(stream);
  *status = captured(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  *nodes = &last;
  *count = last != nullptr;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaStreamBeginCaptureToGraph(cudaStream_t stream, cudaGraph_t graph,
                                                    const cudaGraphNode_t* after, const cudaGraphEdgeData*,
                                                    std::size_t count, cudaStreamCaptureMode mode) {
  if (mode != cudaStreamCaptureModeThreadLocal) broken("a capture that forbids other threads to allocate");
  if (setting("refuse", "") == "cudaStreamBeginCaptureToGraph") return cudaErrorUnknown;
  begin_into(stream, graph, count == 0 ? nullptr : *after);
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaGraphConditionalHandleCreate(cudaGraphConditionalHandle* condition, cudaGraph_t graph,
                                                       unsigned value, unsigned flags) {
  if (value != 0 || flags != cudaGraphCondAssignDefault) broken("a condition that is not 0 when a graph is launched");
  return *condition = new_condition(graph), cudaSuccess;
}
cudaError_t CUDARTAPI cudaGraphAddNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after,
                                       const cudaGraphEdgeData*, std::size_t count, cudaGraphNodeParams* params) {
  static thread_local cudaGraph_t body;
  const cudaConditionalNodeParams& given = params->conditional;
  if (params->type != cudaGraphNodeTypeConditional || given.type != cudaGraphCondTypeIf || given.size != 1)
    broken("a node of another kind than a branch");
  *node = add_branch(graph, count == 0 ? nullptr : *after, given.handle, &body);
  params->conditional.phGraph_out = &body;
  return cudaSuccess;
}
}
