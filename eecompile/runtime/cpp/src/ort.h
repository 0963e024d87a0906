// ONNX Runtime on the CPU: graphs bound to buffers in place, one thread pool for the whole process.
//
// The library is loaded at run time by its C interface, so that nothing here is linked with it.
// Thread safety: the engines' (engine.h). Cost: a pass holds a few hundred bytes for each tensor.
#pragma once

#include <memory>
#include <string>

#include "engine.h"

struct OrtApi;
struct OrtEnv;

namespace eecompile {

// The library and its process-wide thread pool.
class OrtLibrary {
 public:
  // Loads `path` and makes the pool of `threads`. The first caller in a process decides both; another number of threads
  // later is refused. kMissingBackend where there is no such library or it is too old.
  static Result<std::shared_ptr<const OrtLibrary>> open(const std::string& path, int threads);

  const OrtApi& api() const { return *api_; }
  OrtEnv* environment() const { return environment_; }

 private:
  OrtLibrary() = default;

  const OrtApi* api_ = nullptr;
  OrtEnv* environment_ = nullptr;  // lives as long as the process
  int threads_ = 0;
};

// The engine of one ONNX graph, in the process's memory. Refuses one whose interface is not what the manifest says.
Result<SharedEngine> open_ort(std::shared_ptr<const OrtLibrary> library, const std::string& path, GraphInfo info);

}  // namespace eecompile
