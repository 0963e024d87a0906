// A row is cut into tiles, a block each (tile.cuh); the block that is the last to finish a row merges its tiles.
#include "kernel.cuh"

#include "tile.cuh"

namespace eecompile {
namespace kernels {

constexpr std::uint64_t kStays = std::uint64_t{1} << 32;

struct Task {
  Logits logits;
  const float* bounds;
  Decisions out;
  int tiles;                // of a row
  std::uint64_t* verdict;   // low half: rows decided; high half: those that stay
  unsigned* finished;       // [rows]: tiles reduced
  Reduction* partial;       // [rows, tiles]
#if EECOMPILE_CONDITIONAL_GRAPHS
  Condition condition;
  bool conditional;
#endif
};

int tiles_of(int vocab) { return vocab / kTile + (vocab % kTile != 0); }

std::size_t counter_bytes(int rows) { return sizeof(std::uint64_t) + (std::size_t{unsigned(rows)} + 1) / 2 * 8; }

// As written by another block: not from the cache of this one.
__device__ Reduction load_partial(const Reduction* at) {
  return {__ldcg(&at->max),   __ldcg(&at->second), __ldcg(&at->low),
          __ldcg(&at->index), __ldcg(&at->sum),    __ldcg(&at->moment)};
}

// One warp of each tile's block calls this. True in the warp that came last, which gets the whole row's reduction.
__device__ bool reduce_row(const Task& task, int row, int tile, Reduction& state) {
  const int lane = threadIdx.x % kLanes;
  Reduction* partial = task.partial + std::int64_t{row} * task.tiles;
  unsigned before = 0;
  if (lane == 0) {
    partial[tile] = state;
    __threadfence();
    before = atomicAdd(&task.finished[row], 1);
    __threadfence();
  }
  if (__shfl_sync(kAll, before, 0) + 1 != unsigned(task.tiles)) return false;
  __syncwarp();
  state = Reduction::empty();
  for (int i = lane; i < task.tiles; i += kLanes) state.merge(load_partial(&partial[i]));
  state = reduce_warp(state);
  if (lane == 0) task.finished[row] = 0;
  return true;
}

__device__ void write(const Task& task, int row, const Reduction& state) {
  const Decision decision = state.finish();
  const bool opens = decision.opens(task.bounds + std::int64_t{row} * 3);
  task.out.token[row] = decision.token;
  task.out.max_prob[row] = decision.max_prob;
  task.out.margin[row] = decision.margin;
  task.out.entropy[row] = decision.entropy;
  task.out.exit_flag[row] = opens;
#if EECOMPILE_CONDITIONAL_GRAPHS
  if (task.conditional) {
    const std::uint64_t mine = 1 + (opens ? 0 : kStays);
    const std::uint64_t all = mine + atomicAdd(reinterpret_cast<unsigned long long*>(task.verdict), mine);
    if (unsigned(all) == unsigned(task.logits.rows)) {
      *task.verdict = 0;
      cudaGraphSetConditional(task.condition.handle, (all < kStays) != task.condition.inverted);
    }
  }
#endif
}

template <typename T>
__global__ void __launch_bounds__(kThreads) decide(const Task task) {
  const int row = blockIdx.x / task.tiles, tile = blockIdx.x % task.tiles;
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const T* logits = static_cast<const T*>(task.logits.data) + row * task.logits.stride;
  __shared__ Reduction warps[kWarps];
  Reduction state = reduce_warp(reduce_thread(logits, tile * kTile, task.logits.vocab));
  if (lane == 0) warps[warp] = state;
  __syncthreads();
  if (warp != 0) return;
  state = reduce_warp(lane < kWarps ? warps[lane] : Reduction::empty());
  if (task.tiles > 1 && !reduce_row(task, row, tile, state)) return;
  if (lane == 0) write(task, row, state);
}

}  // namespace kernels

using namespace kernels;

std::size_t workspace_bytes(int rows, int vocab) {
  const std::size_t partials = std::size_t{unsigned(rows)} * tiles_of(vocab);
  return counter_bytes(rows) + (tiles_of(vocab) > 1 ? partials * sizeof(Reduction) : 0);
}

cudaError_t prepare(void* workspace, int rows, cudaStream_t stream) {
  return cudaMemsetAsync(workspace, 0, counter_bytes(rows), stream);
}

cudaError_t launch(const Logits& logits, const float* bounds, const Decisions& out, void* workspace,
                   cudaStream_t stream, const Condition* condition) {
  constexpr std::int64_t kMost = 0x7fffffff;
  if (logits.rows < 1 || logits.vocab < 1 || logits.stride < logits.vocab || logits.vocab > kMost - kTile ||
      std::int64_t{logits.rows} * tiles_of(logits.vocab) > kMost) {
    return cudaErrorInvalidValue;
  }
  char* bytes = static_cast<char*>(workspace);
  Task task{logits, bounds, out, tiles_of(logits.vocab)};
  task.verdict = reinterpret_cast<std::uint64_t*>(bytes);
  task.finished = reinterpret_cast<unsigned*>(bytes + sizeof(std::uint64_t));
  task.partial = reinterpret_cast<Reduction*>(bytes + counter_bytes(logits.rows));
#if EECOMPILE_CONDITIONAL_GRAPHS
  task.conditional = condition != nullptr;
  if (condition) task.condition = *condition;
#else
  if (condition) return cudaErrorNotSupported;
#endif
  const unsigned blocks = unsigned(logits.rows) * unsigned(task.tiles);
  switch (logits.type) {
    case LogitType::kFloat32: decide<float><<<blocks, kThreads, 0, stream>>>(task); break;
    case LogitType::kFloat16: decide<__half><<<blocks, kThreads, 0, stream>>>(task); break;
    case LogitType::kBFloat16: decide<__nv_bfloat16><<<blocks, kThreads, 0, stream>>>(task); break;
    default: return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

}  // namespace eecompile
