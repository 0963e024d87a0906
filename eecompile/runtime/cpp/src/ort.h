// ONNX Runtime: graphs bound to buffers in place, one thread pool for the whole process; on a GPU through its CUDA
// provider (engines/ort.py, engines/ort_cuda.py).
//
// The library is loaded at run time by its C interface, so that nothing here is linked with it.
// Thread safety: the engines' (engine.h). Cost: a pass holds a few hundred bytes for each tensor.
#pragma once

#include <memory>
#include <string>

#include "engine.h"
#include "gpu_memory.h"

struct OrtApi;
struct OrtEnv;

namespace eecompile {

// The library and its process-wide thread pool.
class OrtLibrary {
 public:
  // Loads `path` and makes the pool of `threads`. The first caller in a process decides both; another number of threads
  // later is refused. kMissingBackend where there is no such library or it is too old.
  static Result<std::shared_ptr<const OrtLibrary>> open(const std::string& path, int threads);

  // Whether this ONNX Runtime has the CUDA provider, as it says itself; kMissingBackend where it has not.
  Status check_cuda() const;

  const OrtApi& api() const { return *api_; }
  OrtEnv* environment() const { return environment_; }
  // Whether weights go to large pages (ort_allocator.h).
  bool large_pages() const { return large_pages_; }

 private:
  OrtLibrary() = default;

  const OrtApi* api_ = nullptr;
  OrtEnv* environment_ = nullptr;  // lives as long as the process
  int threads_ = 0;
  bool large_pages_ = false;
};

// The GPU that sessions run on, and the memory of their buffers; neither on the CPU.
struct OrtGpu {
  std::shared_ptr<Gpu> gpu;
  std::shared_ptr<GpuMemory> memory;
};

// The engine of one ONNX graph. Refuses one whose interface is not what the manifest says; and, since ONNX Runtime falls
// back to the CPU without a word, a session on a GPU that did not get it. varied: shapes change from pass to pass, so
// that the memory of one is not kept for the next (engines/ort.py).
Result<SharedEngine> open_ort(std::shared_ptr<const OrtLibrary> library, const std::string& path, GraphInfo info,
                              const OrtGpu& gpu = {}, bool varied = false);

}  // namespace eecompile
