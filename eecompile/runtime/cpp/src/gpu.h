// One GPU: its stream, the wait for it, captured graphs, and errors in words (engines/cuda.py).
//
// Everything that a bundle's engines do on a GPU goes through one stream in order, so that they may share scratch
// memory, and under one lock, so that an execution context has one thread at a time and nothing slips into another's
// capture. Thread safety: what asks for a Turn belongs to whoever holds it; the rest is thread-safe. Cost: a context of
// the GPU's, which the process shares.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "eecompile/status.h"
#include "gpu_driver.h"

namespace eecompile {

// sm: compute capability, as 87. cuda: the newest CUDA version that the driver runs, as "12.6".
struct GpuFacts {
  std::string name, cuda;
  int sm = 0;
};

class Gpu {
 public:
  // The first GPU that CUDA shows; kMissingBackend where there is none, or no driver for it.
  static Result<std::shared_ptr<Gpu>> open();
  static Result<GpuFacts> read_facts();  // without a context on it

  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;
  ~Gpu();

  const GpuFacts& facts() const { return facts_; }
  const CudaDriver& driver() const { return driver_; }
  CudaStream stream() const { return stream_; }

  // The stream, and the GPU's context in this thread, for as long as this lives. One a thread at a time.
  class Turn {
   public:
    explicit Turn(Gpu& gpu);

   private:
    std::lock_guard<std::mutex> lock_;
  };

  // Of a call that returned `code`: fine, or the function and what CUDA says.
  Status checked(int code, const char* function) const;

  // Waits for everything in the stream, spinning: what follows is a decision that the host is to act on.
  Status wait(const Turn&);

  // What `enqueue` puts into the stream as a graph that can be launched again; nothing runs. Where something in it
  // cannot be captured the stream stays usable.
  Result<CudaGraphExec> capture(const Turn&, const std::function<Status()>& enqueue);

  // Puts a copy between two places in the GPU's own memory into the stream.
  Status copy(const Turn&, void* to, const void* from, std::size_t bytes);

 private:
  Gpu(const CudaDriver& driver, GpuFacts facts) : driver_(driver), facts_(std::move(facts)) {}
  Status start();

  const CudaDriver& driver_;
  GpuFacts facts_;
  std::mutex mutex_;
  int device_ = 0;
  CudaContext context_ = nullptr;
  CudaStream stream_ = nullptr;
  CudaEvent done_ = nullptr;
};

}  // namespace eecompile
