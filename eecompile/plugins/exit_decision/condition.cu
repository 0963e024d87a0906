#include "condition.cuh"

#include "kernel.cuh"

namespace eecompile {
namespace {

struct Handle {
  unsigned long long handle;
  bool set;
};

__device__ void set(Handle condition, bool value) {
#if EECOMPILE_CONDITIONAL_GRAPHS
  if (condition.set) cudaGraphSetConditional(condition.handle, value);
#endif
}

__global__ void ask(const float* value, double above, double most, std::int32_t* outcome, Handle condition) {
  const Outcome found = asked(*value, above, most);
  *outcome = found;
  set(condition, found == kAsked);
}

__global__ void decide(const std::uint8_t* flag, bool gated, std::int32_t* outcome, Handle condition) {
  const Outcome found = decided(gated ? Outcome(*outcome) : kAsked, *flag != 0);
  *outcome = found;
  set(condition, found != kFired);
}

Handle of(const unsigned long long* condition) { return {condition ? *condition : 0, condition != nullptr}; }

}  // namespace

cudaError_t launch_ask(const float* value, double above, double most, std::int32_t* outcome,
                       const unsigned long long* condition, cudaStream_t stream) {
  ask<<<1, 1, 0, stream>>>(value, above, most, outcome, of(condition));
  return cudaGetLastError();
}

cudaError_t launch_decide(const std::uint8_t* flag, bool gated, std::int32_t* outcome,
                          const unsigned long long* condition, cudaStream_t stream) {
  decide<<<1, 1, 0, stream>>>(flag, gated, outcome, of(condition));
  return cudaGetLastError();
}

}  // namespace eecompile
