// Memory of a GPU's engines: rows in pinned host memory that the GPU reads itself, caches in the GPU's own
// (engines/cuda_memory.py).
//
// Under unified addressing, memory from cuMemHostAlloc has one address for both sides, which is checked. Blocks that
// nobody holds any more are kept for the next of their size, and go back to the driver when the whole memory goes: a
// new session wants the sizes of the one before, and no address is freed under a graph that has it.
// Thread safety: thread-safe; not to be called by who has a Turn. Cost: what was held at most at one time.
#pragma once

#include <map>
#include <mutex>
#include <vector>

#include "engine.h"
#include "gpu.h"

namespace eecompile {

inline constexpr std::size_t kGpuAlignment = 256;  // bytes, of every address that an engine is given

// Blocks of one kind of memory, of sizes rounded up to the alignment.
class GpuBlocks : public std::enable_shared_from_this<GpuBlocks> {
 public:
  GpuBlocks(std::shared_ptr<Gpu> gpu, bool pinned) : gpu_(std::move(gpu)), pinned_(pinned) {}
  ~GpuBlocks();

  Block take(std::size_t bytes);  // what it holds is anybody's guess
  bool has(const void* data, std::size_t bytes) const;

 private:
  std::byte* cut(std::size_t size);
  std::byte* more(std::size_t size);

  std::shared_ptr<Gpu> gpu_;
  bool pinned_;
  mutable std::mutex mutex_;
  struct Kept {  // blocks of one size: those that are free, and how many there are
    std::vector<std::byte*> free;
    std::size_t made = 0;
  };
  std::map<std::size_t, Kept> kept_;
  std::map<std::byte*, std::size_t> allocations_;
  std::byte* next_ = nullptr;
  std::size_t left_ = 0;
};

class GpuMemory : public Memory {
 public:
  GpuMemory(std::shared_ptr<Gpu> gpu, std::int64_t length);

  std::int64_t length() const override { return length_; }
  std::string gpu() const override { return gpu_->facts().name; }
  Block rows(std::size_t bytes) override;
  Block constant(const void* data, std::size_t bytes) override;
  Block cache(std::size_t bytes) override;
  void clear(const Buffer& cache, std::int64_t slot, std::int64_t rows) override;
  void move(const Buffer& cache, std::int64_t source, std::int64_t target, std::int64_t rows) override;

  Block scratch(std::size_t bytes) { return own_->take(bytes); }  // of the GPU's, with anything in it
  bool on_gpu(const Buffer& buffer) const { return own_->has(buffer.data, buffer.bytes()); }

  // Why a pass may not be given this buffer: it is of another memory, or not aligned.
  Status check(const Buffer& buffer, const std::string& name) const;

 private:
  std::shared_ptr<Gpu> gpu_;
  std::int64_t length_;
  std::shared_ptr<GpuBlocks> host_, own_;
};

}  // namespace eecompile
