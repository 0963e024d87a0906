// Kernels of one thread that decide at an exit and set the condition of the node behind them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "condition.h"

namespace eecompile {

// Set outcome[0] by a cheap gate's value, and the condition, if there is one, to whether the head is to run. `value` and
// `outcome` are where the device reads and writes them. Enqueues one kernel, may be captured.
cudaError_t launch_ask(const float* value, double above, double most, std::int32_t* outcome,
                       const unsigned long long* condition, cudaStream_t stream);

// Set outcome[0] by the head's flag, and the condition, if there is one, to whether the token goes on. gated: a cheap
// gate was asked before, and the flag is nothing where it refused.
cudaError_t launch_decide(const std::uint8_t* flag, bool gated, std::int32_t* outcome,
                          const unsigned long long* condition, cudaStream_t stream);

}  // namespace eecompile
