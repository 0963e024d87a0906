#include "cycles.h"

#include <algorithm>
#include <cmath>

namespace eecompile {

double CycleGate::value(const float* row) const {
  double score = 0;
  for (std::size_t i = 0; i < weight.size(); ++i) score += static_cast<double>(row[i] * weight[i]);
  return 1 / (1 + std::exp(-std::clamp(score + bias, -700.0, 700.0)));
}

Status settle(const CycleGate& gate, const float* inputs, float* out, std::int64_t rows, const RunRows& run) {
  const std::size_t width = gate.think.size();
  std::vector<float> again(width);
  for (std::int64_t row = 0; row < rows; ++row) {
    float* own = out + static_cast<std::size_t>(row) * width;
    std::int64_t ran = 0;
    while (ran < gate.repeats && gate.value(own) < gate.threshold) {
      for (std::size_t i = 0; i < width; ++i) again[i] = own[i] + gate.think[i];
      if (Status status = run(again.data(), 1, row, own); !status.ok()) return status;
      ++ran;
    }
    if (ran == 0 || row + 1 == rows) continue;
    const std::size_t next = static_cast<std::size_t>(row + 1) * width;
    if (Status status = run(inputs + next, rows - row - 1, row + 1, out + next); !status.ok()) return status;
  }
  return {};
}

}  // namespace eecompile
