// What the engines of a bundle share: a GPU and its memory, TensorRT's runtime, scratch memory, and a place for what
// nobody reads.
//
// Thread safety: what takes a Turn belongs to whoever holds it; load every engine before the first pass is bound.
// Cost: see trt_engines.h.
#pragma once

#include <array>
#include <memory>

#include "gpu_memory.h"
#include "trt_library.h"

namespace eecompile {

class TrtShared {
 public:
  static Result<std::shared_ptr<TrtShared>> make(std::shared_ptr<const TrtLibrary> library, std::shared_ptr<Gpu> gpu,
                                                 std::int64_t length);
  ~TrtShared();

  Gpu& gpu() const { return *gpu_; }
  const std::shared_ptr<Gpu>& gpu_pointer() const { return gpu_; }
  const std::shared_ptr<GpuMemory>& gpu_memory() const { return gpu_memory_; }
  const std::shared_ptr<Memory>& memory() const { return memory_; }
  const TrtLibrary& library() const { return *library_; }
  TrtLog& log() { return log_; }

  Result<std::unique_ptr<nvinfer1::ICudaEngine>> deserialise(const std::string& path);

  // Memory that all engines use in turn, as large as the largest needs: scratch, and outputs that are not read there.
  enum Kind { kScratch, kLoose };
  void need(Kind kind, std::size_t bytes);
  void allocate();  // both; without a Turn, before any pass asks for them
  std::byte* block(Kind kind) const { return blocks_[kind].get(); }

  // A new context of an engine for a profile, on the shared scratch memory.
  Result<std::unique_ptr<nvinfer1::IExecutionContext>> context(const Gpu::Turn&, nvinfer1::ICudaEngine& engine,
                                                               int profile);

 private:
  TrtShared() = default;

  std::shared_ptr<const TrtLibrary> library_;
  std::shared_ptr<Gpu> gpu_;
  std::shared_ptr<GpuMemory> gpu_memory_;
  std::shared_ptr<Memory> memory_;
  TrtLog log_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::mutex mutex_;
  std::array<std::size_t, 2> needs_ = {1, 1};
  std::array<Block, 2> blocks_;
};

}  // namespace eecompile
