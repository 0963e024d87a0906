// A block's part of the exit decision: kThreads threads reduce a tile of kTile logits.
//
// Which logits a thread adds, and in which order, goes by their column alone, never by an address or by how many rows
// there are: a row's bits do not depend on the pass that it is in, on which exact decoding rests.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "reduction.h"

namespace eecompile {
namespace kernels {

constexpr int kThreads = 256;
constexpr int kTile = 4096;
constexpr int kLanes = 32;
constexpr int kWarps = kThreads / kLanes;
constexpr unsigned kAll = 0xffffffffu;

static_assert(kThreads % kLanes == 0 && kWarps <= kLanes, "one warp merges a block's warps");
static_assert(kTile <= 1 << 20, "a row's last tile ends within an int, and grids hold rows times tiles (refusals.h)");

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

// 16 bytes of neighbours.
template <typename T>
struct alignas(16) Group {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];
};

template <typename T>
__device__ Group<T> load(const T* row, int column, int vocab, bool aligned) {
  Group<T> group;
  if (aligned && column + Group<T>::kSize <= vocab) {
    *reinterpret_cast<uint4*>(&group) = __ldg(reinterpret_cast<const uint4*>(row + column));
  } else {
    for (int i = 0; i < Group<T>::kSize; ++i) {
      group.values[i] = column + i < vocab ? row[column + i] : T(0.0f);
    }
  }
  return group;
}

template <typename T>
__device__ void add(Reduction& state, const Group<T>& group, int column, int vocab) {
  float values[Group<T>::kSize];
  for (int i = 0; i < Group<T>::kSize; ++i) values[i] = to_float(group.values[i]);
  if (column + Group<T>::kSize <= vocab) {
    state.add(values, column);
  } else {
    for (int i = 0; i < Group<T>::kSize; ++i) {
      if (column + i < vocab) state.add(values[i], column + i);
    }
  }
}

// What thread x of kThreads makes of the tile that begins at a column.
template <typename T>
__device__ Reduction reduce_thread(const T* row, int begin, int vocab) {
  constexpr int kGroups = kTile / kThreads / Group<T>::kSize;
  static_assert(kGroups * Group<T>::kSize * kThreads == kTile, "a tile is a whole number of groups a thread");
  const bool aligned = reinterpret_cast<std::uintptr_t>(row) % sizeof(uint4) == 0;
  const int first = begin + threadIdx.x * Group<T>::kSize;
  Group<T> groups[kGroups];
#pragma unroll
  for (int i = 0; i < kGroups; ++i) groups[i] = load(row, first + i * kThreads * Group<T>::kSize, vocab, aligned);
  Reduction state = Reduction::empty();
#pragma unroll
  for (int i = 0; i < kGroups; ++i) add(state, groups[i], first + i * kThreads * Group<T>::kSize, vocab);
  return state;
}

// What a tree of `merge` over a warp gives, with one change of scale; every lane gets it.
__device__ inline Reduction reduce_warp(Reduction mine) {
  Reduction all = mine;
  for (int step = kLanes / 2; step > 0; step /= 2) {
    all.max = fmaxf(all.max, __shfl_xor_sync(kAll, all.max, step));
    all.low = fminf(all.low, __shfl_xor_sync(kAll, all.low, step));
  }
  all.index = __reduce_min_sync(kAll, mine.max == all.max ? mine.index : kNone);
  all.second = mine.max == all.max && mine.index == all.index ? mine.second : mine.max;
  mine.rescale(all.max);
  all.sum = mine.sum, all.moment = mine.moment;
  for (int step = kLanes / 2; step > 0; step /= 2) {
    all.second = fmaxf(all.second, __shfl_xor_sync(kAll, all.second, step));
    all.sum += __shfl_xor_sync(kAll, all.sum, step);
    all.moment += __shfl_xor_sync(kAll, all.moment, step);
  }
  return all;
}

}  // namespace kernels
}  // namespace eecompile
