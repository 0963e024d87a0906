// A pass whose work on a GPU can be part of a larger graph (runtime/device_step.py).
//
// Thread safety: belongs to whoever holds the GPU's turn. Cost: a context of its own, once it is warm.
#pragma once

#include "engine.h"
#include "gpu.h"

namespace eecompile {

class DevicePass : public Pass {
 public:
  // Puts a run into the stream that makes `enqueue` fit for a capture, once it was waited for; nothing, where one was
  // before.
  virtual Status warm(const Gpu::Turn& turn) = 0;

  // Puts a run into the stream, which may be capturing: of a pass that was made warm and is never run by itself.
  virtual Status enqueue(const Gpu::Turn& turn) = 0;
};

}  // namespace eecompile
