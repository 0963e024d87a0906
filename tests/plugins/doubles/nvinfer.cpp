// A double of libnvinfer: its registry, by the rules that NvInferRuntimeCommon.h states, and its logger. Both record.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <vector>

using nvinfer1::IPluginCreatorInterface;
using nvinfer1::IPluginCreatorV3One;

namespace {

class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* text) noexcept override {
    std::printf("%s: %s\n", severity == Severity::kERROR ? "error" : "other", text);
  }
} logger;

class LoggerFinder final : public nvinfer1::ILoggerFinder {
 public:
  nvinfer1::ILogger* findLogger() override { return &logger; }
} finder;

class Registry final : public nvinfer1::IPluginRegistry {
 public:
  bool registerCreator(IPluginCreatorInterface& creator, const char* space) noexcept override {
    const auto& one = static_cast<const IPluginCreatorV3One&>(creator);
    if (std::strcmp(creator.getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") != 0) return false;
    if (std::strcmp(space, one.getPluginNamespace()) != 0) return false;
    if (getCreator(one.getPluginName(), one.getPluginVersion(), space)) {
      std::printf("error: %s is registered twice\n", one.getPluginName());
      return false;
    }
    creators_.push_back(&creator);
    return true;
  }
  IPluginCreatorInterface* getCreator(const char* name, const char* version, const char* space) noexcept override {
    for (IPluginCreatorInterface* creator : creators_) {
      const auto& one = static_cast<const IPluginCreatorV3One&>(*creator);
      if (!std::strcmp(one.getPluginName(), name) && !std::strcmp(one.getPluginVersion(), version) &&
          !std::strcmp(one.getPluginNamespace(), space)) {
        return creator;
      }
    }
    return nullptr;
  }
  IPluginCreatorInterface* const* getAllCreators(std::int32_t* count) const noexcept override {
    *count = static_cast<std::int32_t>(creators_.size());
    return creators_.data();
  }
  PluginLibraryHandle loadLibrary(const char* path) noexcept override {
    void* library = dlopen(path, RTLD_LAZY);
    if (!library) return nullptr;
    const auto get =
        reinterpret_cast<IPluginCreatorInterface* const* (*)(std::int32_t&)>(dlsym(library, "getCreators"));
    const auto set = reinterpret_cast<void (*)(nvinfer1::ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
    if (!get || !set) return nullptr;
    set(&finder);
    std::int32_t count = 0;
    IPluginCreatorInterface* const* creators = get(count);
    for (int i = 0; i < count; ++i) {
      if (!registerCreator(*creators[i], "")) {
        dlclose(library);
        return nullptr;
      }
    }
    return library;
  }

  bool deregisterCreator(const IPluginCreatorInterface&) noexcept override { return false; }
  bool registerCreator(nvinfer1::IPluginCreator&, const char*) noexcept override { return false; }
  nvinfer1::IPluginCreator* const* getPluginCreatorList(std::int32_t*) const noexcept override { return nullptr; }
  nvinfer1::IPluginCreator* getPluginCreator(const char*, const char*, const char*) noexcept override {
    return nullptr;
  }
  bool deregisterCreator(const nvinfer1::IPluginCreator&) noexcept override { return false; }
  void setErrorRecorder(nvinfer1::IErrorRecorder*) noexcept override {}
  nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
  bool isParentSearchEnabled() const override { return true; }
  void setParentSearchEnabled(bool) override {}
  void deregisterLibrary(PluginLibraryHandle) noexcept override {}
  nvinfer1::IPluginResource* acquirePluginResource(const char*, nvinfer1::IPluginResource*) noexcept override {
    return nullptr;
  }
  std::int32_t releasePluginResource(const char*) noexcept override { return 1; }
  IPluginCreatorInterface* const* getAllCreatorsRecursive(std::int32_t* count) noexcept override {
    return getAllCreators(count);
  }

 private:
  std::vector<IPluginCreatorInterface*> creators_;
} registry;

}  // namespace

extern "C" nvinfer1::IPluginRegistry* getPluginRegistry() noexcept { return &registry; }
extern "C" nvinfer1::ILogger* getLogger() noexcept { return &logger; }
