// The library's interface in C for graphs with conditional nodes: what Python's CUDA package has in another shape in each
// version, and what it has no kernels for. Every function returns a cudaError_t, 0 for success.
//
// A graph is captured in sections: eecompile_condition_capture begins one behind a node, cudaStreamEndCapture ends it. A
// section that a conditional node follows ends with _ask or _decide, which say what node they are.
#include "condition.cuh"
#include "kernel.cuh"

#define EECOMPILE_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using Handle = unsigned long long;

// The node that the next one captured in the stream would depend on; null where nothing is being captured.
cudaError_t last_node(cudaStream_t stream, cudaGraphNode_t* node) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaGraphNode_t* nodes = nullptr;
  std::size_t count = 0;
#if CUDART_VERSION >= 13000
  const cudaError_t error = cudaStreamGetCaptureInfo(stream, &status, nullptr, nullptr, &nodes, nullptr, &count);
#else
  const cudaError_t error = cudaStreamGetCaptureInfo_v2(stream, &status, nullptr, nullptr, &nodes, &count);
#endif
  *node = nullptr;
  if (error != cudaSuccess || status == cudaStreamCaptureStatusNone) return error;
  if (status != cudaStreamCaptureStatusActive || count != 1) return cudaErrorStreamCaptureInvalidated;
  *node = nodes[0];
  return cudaSuccess;
}

}  // namespace

// Whether this library and this driver know conditional nodes with copies in their bodies: CUDA 12.4.
EECOMPILE_EXPORT int eecompile_condition_available() {
#if EECOMPILE_CONDITIONAL_GRAPHS
  int driver = 0;
  const cudaError_t error = cudaDriverGetVersion(&driver);
  if (error != cudaSuccess) return error;
  return driver >= 12040 ? cudaSuccess : cudaErrorInsufficientDriver;
#else
  return cudaErrorNotSupported;
#endif
}

// As launch_ask; `node`: what was captured, if anything was.
EECOMPILE_EXPORT int eecompile_condition_ask(cudaStream_t stream, const float* value, double above, double most,
                                             std::int32_t* outcome, const Handle* condition, cudaGraphNode_t* node) {
  const cudaError_t error = eecompile::launch_ask(value, above, most, outcome, condition, stream);
  return error != cudaSuccess ? error : last_node(stream, node);
}

// As launch_decide; `node`: what was captured, if anything was.
EECOMPILE_EXPORT int eecompile_condition_decide(cudaStream_t stream, const std::uint8_t* flag, int gated,
                                                std::int32_t* outcome, const Handle* condition,
                                                cudaGraphNode_t* node) {
  const cudaError_t error = eecompile::launch_decide(flag, gated != 0, outcome, condition, stream);
  return error != cudaSuccess ? error : last_node(stream, node);
}

#if EECOMPILE_CONDITIONAL_GRAPHS

// Begin to capture the stream's work into `graph`, behind `after`, which may be null.
EECOMPILE_EXPORT int eecompile_condition_capture(cudaStream_t stream, cudaGraph_t graph, cudaGraphNode_t after) {
  return cudaStreamBeginCaptureToGraph(stream, graph, after ? &after : nullptr, nullptr, after ? 1 : 0,
                                       cudaStreamCaptureModeThreadLocal);
}

// A condition for a node of `graph`, 0 whenever the graph is launched.
EECOMPILE_EXPORT int eecompile_condition_create(cudaGraph_t graph, Handle* condition) {
  return cudaGraphConditionalHandleCreate(condition, graph, 0, cudaGraphCondAssignDefault);
}

// Add a node behind `after` that runs `body`, which is empty as yet, where the condition is not 0.
EECOMPILE_EXPORT int eecompile_condition_branch(cudaGraph_t graph, cudaGraphNode_t after, Handle condition,
                                                cudaGraphNode_t* node, cudaGraph_t* body) {
  cudaGraphNodeParams params = {};
  params.type = cudaGraphNodeTypeConditional;
  params.conditional.handle = condition;
  params.conditional.type = cudaGraphCondTypeIf;
  params.conditional.size = 1;
#if CUDART_VERSION >= 13000
  const cudaError_t error = cudaGraphAddNode(node, graph, &after, nullptr, 1, &params);
#else
  const cudaError_t error = cudaGraphAddNode(node, graph, &after, 1, &params);
#endif
  if (error == cudaSuccess) *body = params.conditional.phGraph_out[0];
  return error;
}

#else

EECOMPILE_EXPORT int eecompile_condition_capture(cudaStream_t, cudaGraph_t, cudaGraphNode_t) {
  return cudaErrorNotSupported;
}

EECOMPILE_EXPORT int eecompile_condition_create(cudaGraph_t, Handle*) { return cudaErrorNotSupported; }

EECOMPILE_EXPORT int eecompile_condition_branch(cudaGraph_t, cudaGraphNode_t, Handle, cudaGraphNode_t*, cudaGraph_t*) {
  return cudaErrorNotSupported;
}

#endif
