// What tools/plugin_estimate.py counts instructions of: a thread adds N groups of logits; one warp reduction more.
#include "tile.cuh"

namespace eecompile {
namespace kernels {

template <typename T, int N, bool kReduces>
__device__ void probe(const T* row, Reduction* out) {
  Reduction state = Reduction::empty();
  Group<T> groups[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const T* from = row + (i * kThreads + threadIdx.x) * Group<T>::kSize;
    *reinterpret_cast<uint4*>(&groups[i]) = __ldg(reinterpret_cast<const uint4*>(from));
  }
#pragma unroll
  for (int i = 0; i < N; ++i) add(state, groups[i], (i * kThreads + threadIdx.x) * Group<T>::kSize, 0x7fffffff);
  out[threadIdx.x] = kReduces ? reduce_warp(state) : state;
}

}  // namespace kernels
}  // namespace eecompile

#define EECOMPILE_PROBE(name, type, groups, reduces)                         \
  extern "C" __global__ void __launch_bounds__(eecompile::kernels::kThreads) \
      name(const type* row, eecompile::Reduction* out) {                     \
    eecompile::kernels::probe<type, groups, reduces>(row, out);              \
  }

EECOMPILE_PROBE(fp32_few, float, 4, false)
EECOMPILE_PROBE(fp32_many, float, 8, false)
EECOMPILE_PROBE(fp32_warp, float, 4, true)
EECOMPILE_PROBE(fp16_few, __half, 2, false)
EECOMPILE_PROBE(fp16_many, __half, 4, false)
EECOMPILE_PROBE(fp16_warp, __half, 2, true)
EECOMPILE_PROBE(bf16_few, __nv_bfloat16, 2, false)
EECOMPILE_PROBE(bf16_many, __nv_bfloat16, 4, false)
EECOMPILE_PROBE(bf16_warp, __nv_bfloat16, 2, true)
