// TensorRT's own library, loaded at run time: the major version that this was compiled against, that version or newer.
//
// Thread safety: thread-safe. Cost: what the library takes; it stays loaded.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include <NvInferRuntime.h>

#include "eecompile/status.h"

namespace eecompile {

// Keeps what is said of faults.
class TrtLog : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* text) noexcept override;
  std::string said() const;  // the last few faults

 private:
  mutable std::mutex mutex_;
  std::deque<std::string> faults_;
};

// The exit decision's library (plugins/library.py). sha256: of the file, as records of engines keep it.
struct PluginLibrary {
  std::string path, sha256;
};

// The library at `path`: a file, or the folder that has libeecompile_plugins.so.
Result<PluginLibrary> find_plugin(const std::string& path);

class TrtLibrary {
 public:
  static Result<std::shared_ptr<const TrtLibrary>> open();

  const std::string& version() const { return version_; }  // as 10.16.2.11

  // A function of this library, or of the ONNX parser's, which is loaded for it; null where it has none.
  void* symbol(const char* name) const;
  void* parser_symbol(const char* name) const;

  std::unique_ptr<nvinfer1::IRuntime> runtime(TrtLog& log) const;  // null where it cannot be made

  // Registers the plugins of a library for the rest of this process. Opening it registers them where it finds the
  // TensorRT that it was compiled for; only where it did not is the registry asked.
  Status load_plugin(const PluginLibrary& library) const;

 private:
  TrtLibrary() = default;

  void* handle_ = nullptr;
  std::string version_;
};

}  // namespace eecompile
