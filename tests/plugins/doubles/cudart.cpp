// A double of the CUDA runtime's calls for graphs with branches, and of the kernels that set conditions: it records what
// it was given, and the kernels run at once, on the host's memory, by condition.h. test_conditions.py reads `recorded`.
#include "condition.cuh"

#define EECOMPILE_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Recorded {
  int driver = 12040;
  int fails = 0;       // what every call returns
  int nodes = 1;       // that the next captured node would depend on; below 0: nothing is captured
  void *stream = nullptr, *graph = nullptr, *after = nullptr;
  std::uint64_t dependencies = 0;
  int mode = -1, type = -1, size = -1, flags = -1, value = -1;
  unsigned long long handle = 0;   // what a node was given
  unsigned long long set = 0;      // what a kernel has set
  int to = -1;
};

Recorded recorded;
int places[4];  // addresses of nodes and graphs

cudaError_t status() { return cudaError_t(recorded.fails); }

}  // namespace

EECOMPILE_EXPORT Recorded* eecompile_recorded() { return &recorded; }

namespace eecompile {

cudaError_t launch_ask(const float* value, double above, double most, std::int32_t* outcome,
                       const unsigned long long* condition, cudaStream_t stream) {
  recorded.stream = stream;
  *outcome = asked(*value, above, most);
  if (condition) recorded.set = *condition, recorded.to = *outcome == kAsked;
  return status();
}

cudaError_t launch_decide(const std::uint8_t* flag, bool gated, std::int32_t* outcome,
                          const unsigned long long* condition, cudaStream_t stream) {
  recorded.stream = stream;
  *outcome = decided(gated ? Outcome(*outcome) : kAsked, *flag != 0);
  if (condition) recorded.set = *condition, recorded.to = *outcome != kFired;
  return status();
}

}  // namespace eecompile

cudaError_t cudaDriverGetVersion(int* version) {
  *version = recorded.driver;
  return status();
}

cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t stream, cudaGraph_t graph, const cudaGraphNode_t* dependencies,
                                          const cudaGraphEdgeData*, std::size_t count, cudaStreamCaptureMode mode) {
  recorded.stream = stream, recorded.graph = graph, recorded.after = dependencies ? dependencies[0] : nullptr;
  recorded.dependencies = count, recorded.mode = mode;
  return status();
}

cudaError_t cudaGraphConditionalHandleCreate(cudaGraphConditionalHandle* handle, cudaGraph_t graph, unsigned value,
                                             unsigned flags) {
  *handle = 77;
  recorded.graph = graph, recorded.value = int(value), recorded.flags = int(flags);
  return status();
}

namespace {

cudaError_t capture_info(cudaStreamCaptureStatus* capture, const cudaGraphNode_t** nodes, std::size_t* count) {
  static cudaGraphNode_t last[2] = {reinterpret_cast<cudaGraphNode_t>(&places[0]),
                                    reinterpret_cast<cudaGraphNode_t>(&places[1])};
  *capture = recorded.nodes < 0 ? cudaStreamCaptureStatusNone : cudaStreamCaptureStatusActive;
  if (recorded.nodes >= 0) *nodes = last, *count = std::size_t(recorded.nodes);
  return cudaSuccess;
}

cudaError_t add(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after, std::size_t count,
                cudaGraphNodeParams* params) {
  static cudaGraph_t body = reinterpret_cast<cudaGraph_t>(&places[2]);
  recorded.graph = graph, recorded.after = after[0], recorded.dependencies = count;
  recorded.type = params->conditional.type, recorded.size = int(params->conditional.size);
  recorded.handle = params->type == cudaGraphNodeTypeConditional ? params->conditional.handle : 0;
  *node = reinterpret_cast<cudaGraphNode_t>(&places[3]);
  params->conditional.phGraph_out = &body;
  return status();
}

}  // namespace

#if CUDART_VERSION >= 13000
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* capture, unsigned long long*, cudaGraph_t*,
                                     const cudaGraphNode_t** nodes, const cudaGraphEdgeData**, std::size_t* count) {
  return capture_info(capture, nodes, count);
}

cudaError_t cudaGraphAddNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after,
                             const cudaGraphEdgeData*, std::size_t count, cudaGraphNodeParams* params) {
  return add(node, graph, after, count, params);
}
#else
cudaError_t cudaStreamGetCaptureInfo_v2(cudaStream_t, cudaStreamCaptureStatus* capture, unsigned long long*,
                                        cudaGraph_t*, const cudaGraphNode_t** nodes, std::size_t* count) {
  return capture_info(capture, nodes, count);
}

cudaError_t cudaGraphAddNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after, std::size_t count,
                             cudaGraphNodeParams* params) {
  return add(node, graph, after, count, params);
}
#endif
