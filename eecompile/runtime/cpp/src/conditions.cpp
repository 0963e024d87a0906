#include "conditions.h"

#include <dlfcn.h>

namespace eecompile {
namespace {

Status checked(int code, const char* name) {
  if (code == 0) return {};
  return {Code::kInternal, std::string("CUDA: eecompile_condition_") + name + " failed with error " +
                               std::to_string(code), "the GPU", ""};
}

}  // namespace

Result<Conditions> Conditions::open(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* said = dlerror();
    const std::string why = said == nullptr ? "the loader does not say why" : said;
    return Status{Code::kMissingBackend, "the plugin library cannot be opened: " + why, path, kMakePlugin};
  }
  Conditions found;
  bool older = false;
#define EECOMPILE_LOAD(name, arguments)                                                                            \
  found.functions_.name =                                                                                          \
      reinterpret_cast<decltype(found.functions_.name)>(dlsym(library, "eecompile_condition_" #name));             \
  older = older || found.functions_.name == nullptr;
  EECOMPILE_CONDITIONS(EECOMPILE_LOAD)
#undef EECOMPILE_LOAD
  if (older) return Status{Code::kMissingBackend, "the plugin library is of an older eecompile", path, kMakePlugin};
  if (const int code = found.functions_.available(); code != 0)
    return Status{
        Code::kMissingBackend,
        "the plugin library or the driver knows no conditional nodes (CUDA error " + std::to_string(code) + ")", path,
        "compile the library with CUDA 12.4 or later, on a driver for that; or decide by the pinned flag"};
  return found;
}

Status Conditions::capture(CudaStream stream, CudaGraph graph, CudaGraphNode after) const {
  return checked(functions_.capture(stream, graph, after), "capture");
}

Result<ConditionHandle> Conditions::create(CudaGraph graph) const {
  ConditionHandle made = 0;
  if (Status status = checked(functions_.create(graph, &made), "create"); !status.ok()) return status;
  return made;
}

Result<CudaGraphNode> Conditions::ask(CudaStream stream, const float* value, double above, double most,
                                      std::int32_t* outcome, const ConditionHandle* condition) const {
  CudaGraphNode node = nullptr;
  const int code = functions_.ask(stream, value, above, most, outcome, condition, &node);
  if (Status status = checked(code, "ask"); !status.ok()) return status;
  return node;
}

Result<CudaGraphNode> Conditions::decide(CudaStream stream, const std::uint8_t* flag, bool gated,
                                         std::int32_t* outcome, const ConditionHandle* condition) const {
  CudaGraphNode node = nullptr;
  const int code = functions_.decide(stream, flag, gated ? 1 : 0, outcome, condition, &node);
  if (Status status = checked(code, "decide"); !status.ok()) return status;
  return node;
}

Result<Conditions::Branch> Conditions::branch(CudaGraph graph, CudaGraphNode after, ConditionHandle condition) const {
  Branch made;
  const int code = functions_.branch(graph, after, condition, &made.node, &made.body);
  if (Status status = checked(code, "branch"); !status.ok()) return status;
  return made;
}

}  // namespace eecompile
