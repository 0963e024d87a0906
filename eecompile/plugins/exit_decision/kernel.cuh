// The exit decision over logits on a device: one pass, one launch. README.md has the costs.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#define EECOMPILE_CONDITIONAL_GRAPHS (CUDART_VERSION >= 12040)

namespace eecompile {

enum class LogitType { kFloat32, kFloat16, kBFloat16 };

// [rows, vocab] in device memory, `stride` elements from row to row; aligned as its type is, and fastest where every
// row begins on 16 bytes.
struct Logits {
  const void* data;
  LogitType type;
  int rows, vocab;
  std::int64_t stride;
};

// Device memory, one element a row each; exit_flag is 0 or 1, in the smallest type that a TensorRT plugin may give.
struct Decisions {
  std::int64_t* token;
  float *max_prob, *margin, *entropy;
  std::int32_t* exit_flag;
};

#if EECOMPILE_CONDITIONAL_GRAPHS
// Set a graph's condition: to 1 where all rows of the batch open and to 0 where one does not; with `inverted`, as the
// node wants it whose body is the next segment, the other way about.
struct Condition {
  cudaGraphConditionalHandle handle;
  bool inverted;
};
#else
struct Condition;
#endif

// Bytes of workspace that `launch` wants, on 8 bytes. Thread-safe.
std::size_t workspace_bytes(int rows, int vocab);

// Make a workspace ready for `launch`: once suffices, since every launch leaves it so. Needed again after somebody else
// wrote to it, and after a launch that failed.
cudaError_t prepare(void* workspace, int rows, cudaStream_t stream);

// Decide every row against bounds [rows, 3] in device memory: max_prob above, margin above, entropy below. Enqueues one
// kernel, allocates nothing, may be captured. Launches that may overlap need a workspace each. A row's results are the
// same bits whatever rows are beside it and wherever it lies, on one kind of device. cudaErrorInvalidValue: rows, vocab
// or stride below 1 or vocab, or more blocks than a grid has.
cudaError_t launch(const Logits& logits, const float* bounds, const Decisions& out, void* workspace,
                   cudaStream_t stream, const Condition* condition = nullptr);

}  // namespace eecompile
