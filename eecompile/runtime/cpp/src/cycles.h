// Cyclic gates: which rows of a pass run their block again, in the order that makes a pass of several rows give what
// passes of one row give (cycles.py).
//
// Thread safety: values; `settle` is a function of its arguments. Cost: 2 D floats a gate.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "eecompile/status.h"

namespace eecompile {

// Repeats a step for a row whose sigmoid(h . weight + bias) is below `threshold`.
struct CycleGate {
  double threshold = 0;
  std::int64_t repeats = 0;
  std::vector<float> think, weight;  // [D]
  double bias = 0;

  double value(const float* row) const;  // NaN, of a row that is not finite, is below nothing
};

// Runs the block on rows [n, D] of which the first is the pass's row of that number, and puts what it makes into `out`.
using RunRows = std::function<Status(const float* rows, std::int64_t n, std::int64_t first, float* out)>;

// Brings out [rows, D], what the block made of inputs [rows, D], to each row's last run. A row that runs again changes
// its keys and values, which later rows of the pass have read: those run again after it.
Status settle(const CycleGate& gate, const float* inputs, float* out, std::int64_t rows, const RunRows& run);

}  // namespace eecompile
