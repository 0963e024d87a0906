#include "trt_library.h"

#include <dlfcn.h>
#include <sys/stat.h>

#include <algorithm>

#include "conditions.h"
#include "eecompile/contract.h"
#include "files.h"

#define EECOMPILE_TEXT(x) #x
#define EECOMPILE_VALUE_TEXT(x) EECOMPILE_TEXT(x)

namespace eecompile {
namespace {

constexpr const char* kLibrary = "libnvinfer.so." EECOMPILE_VALUE_TEXT(NV_TENSORRT_MAJOR);
constexpr const char* kParser = "libnvonnxparser.so." EECOMPILE_VALUE_TEXT(NV_TENSORRT_MAJOR);
constexpr const char* kPlugins = "libeecompile_plugins.so";
constexpr std::size_t kShown = 4, kLongest = 600;

std::string loader_said() {
  const char* said = dlerror();
  return said == nullptr ? "the loader does not say why" : said;
}

Status missing(std::string what) {
  return {Code::kMissingBackend, std::move(what), kLibrary,
          "install TensorRT (JetPack brings it), or use the back end onnxruntime"};
}

}  // namespace

void TrtLog::log(Severity severity, const char* text) noexcept {
  if (severity != Severity::kINTERNAL_ERROR && severity != Severity::kERROR) return;
  try {
    const std::lock_guard<std::mutex> lock(mutex_);
    faults_.push_back(std::string(text).substr(0, kLongest));
    if (faults_.size() > kShown) faults_.pop_front();
  } catch (const std::exception&) {  // there is no memory to remember it in
  }
}

std::string TrtLog::said() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::string text;
  for (const std::string& fault : faults_) text += (text.empty() ? "" : "; ") + fault;
  return text.empty() ? "it does not say why" : text;
}

Result<PluginLibrary> find_plugin(const std::string& path) {
  struct stat info{};
  const bool folder = stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
  const std::string file = folder ? path + "/" + kPlugins : path;
  const Result<std::string> hash = file_sha256(file);
  if (!hash.ok()) return Status{Code::kMissingBackend, "there is no plugin library", file, kMakePlugin};
  return PluginLibrary{file, *hash};
}

Result<std::shared_ptr<const TrtLibrary>> TrtLibrary::open() {
  const std::shared_ptr<TrtLibrary> found(new TrtLibrary());
  found->handle_ = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (found->handle_ == nullptr) return missing("TensorRT cannot be loaded: " + loader_said());
  int numbers[4] = {};
  const char* const parts[] = {"Major", "Minor", "Patch", "Build"};
  for (int i = 0; i < 4; ++i) {
    const auto ask = reinterpret_cast<std::int32_t (*)()>(
        found->symbol((std::string("getInferLib") + parts[i] + "Version").c_str()));
    if (ask == nullptr) return missing("this TensorRT is older than 10.3");
    numbers[i] = ask();
    found->version_ += (i == 0 ? "" : ".") + std::to_string(numbers[i]);
  }
  if (std::pair(numbers[0], numbers[1]) < std::pair(10, 3))
    return missing("TensorRT " + found->version_ + " is older than 10.3");
  if (std::pair(numbers[0], numbers[1]) < std::pair(NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR))
    return missing("TensorRT " + found->version_ + " is older than the headers that this was compiled with, " +
                   EECOMPILE_VALUE_TEXT(NV_TENSORRT_MAJOR) "." EECOMPILE_VALUE_TEXT(NV_TENSORRT_MINOR));
  return std::shared_ptr<const TrtLibrary>(found);
}

void* TrtLibrary::symbol(const char* name) const { return dlsym(handle_, name); }

void* TrtLibrary::parser_symbol(const char* name) const {
  void* parser = dlopen(kParser, RTLD_NOW | RTLD_LOCAL);  // stays loaded
  return parser == nullptr ? nullptr : dlsym(parser, name);
}

std::unique_ptr<nvinfer1::IRuntime> TrtLibrary::runtime(TrtLog& log) const {
  const auto create = reinterpret_cast<void* (*)(void*, std::int32_t)>(symbol("createInferRuntime_INTERNAL"));
  void* made = create == nullptr ? nullptr : create(static_cast<nvinfer1::ILogger*>(&log), NV_TENSORRT_VERSION);
  return std::unique_ptr<nvinfer1::IRuntime>(static_cast<nvinfer1::IRuntime*>(made));
}

Status TrtLibrary::load_plugin(const PluginLibrary& library) const {
  const auto registry_of = reinterpret_cast<nvinfer1::IPluginRegistry* (*)()>(symbol("getPluginRegistry"));
  nvinfer1::IPluginRegistry* registry = registry_of == nullptr ? nullptr : registry_of();
  if (registry == nullptr) return missing("this TensorRT has no plugin registry");
  const std::string name(contract::kDecisionOp), version(contract::kDecisionVersion);
  const auto registered = [&] { return registry->getCreator(name.c_str(), version.c_str(), "") != nullptr; };
  if (registered()) return {};
  if (dlopen(library.path.c_str(), RTLD_NOW | RTLD_LOCAL) == nullptr)
    return {Code::kMissingBackend, "the plugin library cannot be opened: " + loader_said(), library.path, kMakePlugin};
  if (!registered()) registry->loadLibrary(library.path.c_str());
  if (registered()) return {};
  return {Code::kMissingBackend,
          "TensorRT " + version_ + " does not take the plugin library: it was compiled for another version",
          library.path, kMakePlugin};
}

}  // namespace eecompile
