// The exit decision for engines that carry their kernels (aot.py): a block a row, for there is no workspace and nothing
// between launches, and in the order of kernel.cu: tiles are reduced and merged as there.
//
// Grid: rows. Block: (kThreads, any number of tiles at a time). Shared memory: a Reduction a tile.
#include "tile.cuh"

namespace eecompile {
namespace kernels {

constexpr int kTilesAtOnce = 4;

static_assert(sizeof(Reduction) == 24, "aot.py asks for this much shared memory a tile");

template <typename T>
__device__ void decide_row(const T* logits, const float* bounds, int vocab, std::int64_t* token, float* max_prob,
                           float* margin, float* entropy, std::int32_t* exit_flag) {
  extern __shared__ Reduction tiles[];
  __shared__ Reduction warps[kTilesAtOnce][kWarps];
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes, side = threadIdx.y;
  const std::int64_t row = blockIdx.x;
  const int count = vocab / kTile + (vocab % kTile != 0);
  for (int first = 0; first < count; first += kTilesAtOnce) {
    const int tile = first + side;
    if (tile < count) {
      const Reduction state = reduce_warp(reduce_thread(logits + row * vocab, tile * kTile, vocab));
      if (lane == 0) warps[side][warp] = state;
    }
    __syncthreads();
    if (tile < count && warp == 0) {
      const Reduction state = reduce_warp(lane < kWarps ? warps[side][lane] : Reduction::empty());
      if (lane == 0) tiles[tile] = state;
    }
    __syncthreads();
  }
  if (warp != 0 || side != 0) return;
  Reduction state = Reduction::empty();
  for (int i = lane; i < count; i += kLanes) state.merge(tiles[i]);
  const Decision decision = reduce_warp(state).finish();
  if (lane != 0) return;
  token[row] = decision.token;
  max_prob[row] = decision.max_prob;
  margin[row] = decision.margin;
  entropy[row] = decision.entropy;
  exit_flag[row] = decision.opens(bounds + row * 3);
}

}  // namespace kernels
}  // namespace eecompile

// Inputs, scalars, outputs: the order that TensorRT passes them in.
#define EECOMPILE_EXIT_DECISION(name, type)                                                                         \
  extern "C" __global__ void __launch_bounds__(eecompile::kernels::kThreads* eecompile::kernels::kTilesAtOnce)      \
      name(const type* logits, const float* bounds, int vocab, std::int64_t* token, float* max_prob, float* margin, \
           float* entropy, std::int32_t* exit_flag) {                                                               \
    eecompile::kernels::decide_row(logits, bounds, vocab, token, max_prob, margin, entropy, exit_flag);             \
  }

EECOMPILE_EXIT_DECISION(exit_decision_fp32, float)
EECOMPILE_EXIT_DECISION(exit_decision_fp16, __half)
EECOMPILE_EXIT_DECISION(exit_decision_bf16, __nv_bfloat16)
