// Tasks that `launch` has to refuse, whatever the size of a tile, before it touches a device: they have no memory.
#pragma once

#include <vector>

#include "kernel.cuh"

namespace eecompile {

inline std::vector<Logits> refusals() {
  constexpr int kMost = 0x7fffffff, kMany = 1 << 30;
  return {{nullptr, LogitType::kFloat32, 0, 8, 8},
          {nullptr, LogitType::kFloat32, 1, 0, 8},
          {nullptr, LogitType::kFloat32, 1, 8, 7},
          {nullptr, LogitType::kFloat32, kMost, kMany, kMany},  // more blocks than a grid has
          {nullptr, LogitType::kFloat32, 1, kMost, kMost},      // columns of the last tile would overflow
          {nullptr, static_cast<LogitType>(3), 1, 8, 8}};
}

}  // namespace eecompile
