// ONNX Runtime on the CPU: graphs bound to buffers in place, one thread pool for the whole process.
//
// The library is loaded at run time by its C interface, so that nothing here is linked with it.
// Thread safety: an engine may be shared by any number of threads; a pass belongs to one at a time.
// Cost: an engine holds its graph's weights; a pass a few hundred bytes for each tensor.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "eecompile/status.h"
#include "manifest.h"

struct OrtApi;
struct OrtEnv;
struct OrtIoBinding;
struct OrtSession;

namespace eecompile {

// A contiguous tensor that somebody else owns. dtype: as the manifest writes it.
struct Buffer {
  void* data = nullptr;
  std::string dtype;
  std::vector<std::int64_t> shape;
};
using Buffers = std::map<std::string, Buffer, std::less<>>;

std::size_t element_bytes(std::string_view dtype);

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

// A graph bound to buffers of fixed shapes and addresses. Running it is one pass; the buffers hold the result.
class OrtPass {
 public:
  OrtPass(std::shared_ptr<const OrtLibrary> library, OrtSession* session, OrtIoBinding* binding);
  ~OrtPass();
  OrtPass(OrtPass&& other) noexcept;
  OrtPass& operator=(OrtPass&&) = delete;

  Status run();

 private:
  std::shared_ptr<const OrtLibrary> library_;
  OrtSession* session_;  // its engine's, which outlives it
  OrtIoBinding* binding_;
};

// One ONNX graph. Refuses one whose interface is not what the manifest says.
class OrtEngine {
 public:
  static Result<std::shared_ptr<const OrtEngine>> open(std::shared_ptr<const OrtLibrary> library,
                                                       const std::string& path, GraphInfo info);
  OrtEngine(std::shared_ptr<const OrtLibrary> library, OrtSession* session, GraphInfo info);
  ~OrtEngine();
  OrtEngine(const OrtEngine&) = delete;
  OrtEngine& operator=(const OrtEngine&) = delete;

  const GraphInfo& info() const { return info_; }

  // Every input needs a buffer; outputs without one are not computed into anything.
  Result<OrtPass> bind(const Buffers& buffers) const;

 private:
  Status check_interface(const std::string& where) const;

  std::shared_ptr<const OrtLibrary> library_;
  OrtSession* session_;
  GraphInfo info_;
};

}  // namespace eecompile
