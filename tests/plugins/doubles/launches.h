#pragma once

#include "kernel.cuh"

// What the kernel's double saw last.
struct Launches {
  int count = 0;
  bool fails = false;
  void* prepared = nullptr;
  int prepared_rows = 0;
  cudaStream_t prepared_on = nullptr;
  eecompile::Logits logits{};
  const float* bounds = nullptr;
  eecompile::Decisions out{};
  bool after_prepare = false;
};
