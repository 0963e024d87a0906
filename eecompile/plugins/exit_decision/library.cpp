// How libeecompile_plugins.so gets to TensorRT's registry: IPluginRegistry::loadLibrary asks getCreators; who merely
// opens the library (polygraphy --plugins, trtexec --staticPlugins) gets it registered by opening it.
//
// The library does not link to TensorRT: it looks for the one of its own major version that the process has loaded, and
// registers nothing where there is none. loadLibrary refuses what is registered already, so open a library or load it,
// not both (eecompile/plugins/library.py).
#include <dlfcn.h>

#include <atomic>
#include <cstdio>

#include "plugin.h"

#define EECOMPILE_TEXT(x) #x
#define EECOMPILE_VALUE_TEXT(x) EECOMPILE_TEXT(x)
#define EECOMPILE_EXPORT extern "C" __attribute__((visibility("default")))

namespace eecompile {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

ExitDecisionCreator& creator() noexcept {
  static ExitDecisionCreator only;
  return only;
}

// A function without arguments of the TensorRT library that this process has loaded; nullptr where it has none.
template <typename T>
T* ask_tensorrt(const char* function) noexcept {
  void* library = dlopen("libnvinfer.so." EECOMPILE_VALUE_TEXT(NV_TENSORRT_MAJOR), RTLD_LAZY | RTLD_NOLOAD);
  if (!library) return nullptr;
  void* symbol = dlsym(library, function);
  T* answer = symbol ? reinterpret_cast<T* (*)()>(symbol)() : nullptr;
  dlclose(library);  // the process still has it
  return answer;
}

nvinfer1::ILogger* logger() noexcept {
  nvinfer1::ILoggerFinder* finder = logger_finder.load();
  nvinfer1::ILogger* found = finder ? finder->findLogger() : nullptr;
  return found ? found : ask_tensorrt<nvinfer1::ILogger>("getLogger");
}

struct Registration {
  Registration() noexcept {
    ExitDecisionCreator& ours = creator();
    auto* registry = ask_tensorrt<nvinfer1::IPluginRegistry>("getPluginRegistry");
    const char *name = ours.getPluginName(), *version = ours.getPluginVersion(), *space = ours.getPluginNamespace();
    if (registry && !registry->getCreator(name, version, space)) registry->registerCreator(ours, space);
  }
} registration;

}  // namespace

void complain(const char* what) noexcept {
  nvinfer1::ILogger* to = logger();
  if (!to) return;
  char text[256];
  std::snprintf(text, sizeof text, "ExitDecision: %s", what);
  to->log(nvinfer1::ILogger::Severity::kERROR, text);
}

}  // namespace eecompile

EECOMPILE_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { eecompile::logger_finder = finder; }

EECOMPILE_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&eecompile::creator()};
  count = 1;
  return creators;
}
