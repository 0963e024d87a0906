// Uses libeecompile_plugins.so as TensorRT does, beside a double of libnvinfer and of the kernel's launch.
//
//   plugin_host FOLDER SCENARIO      prints what does not hold and what the logger was told; exit status 1 if anything
//
// test_plugin.py compiles and runs it.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "doubles/launches.h"

using namespace nvinfer1;

namespace {

int faults = 0;

#define EXPECT(what)                                                      \
  do {                                                                    \
    if (!(what)) std::printf("line %d: %s\n", __LINE__, #what), ++faults; \
  } while (0)

template <typename T>
T symbol(void* library, const char* name) {
  return reinterpret_cast<T>(dlsym(library, name));
}

void* open(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) std::printf("%s\n", dlerror()), std::exit(2);
  return library;
}

std::string folder;

IPluginRegistry& tensorrt() {
  return *symbol<IPluginRegistry* (*)()>(open(folder + "/libnvinfer.so.10"), "getPluginRegistry")();
}
std::string library() { return folder + "/libeecompile_plugins.so"; }
Launches& launches() { return *symbol<Launches* (*)()>(open(library()), "recorded")(); }

IPluginCreatorV3One* found(IPluginRegistry& registry) {
  return static_cast<IPluginCreatorV3One*>(registry.getCreator("ExitDecision", "1", ""));
}

int count(const IPluginRegistry& registry) {
  std::int32_t creators = 0;
  registry.getAllCreators(&creators);
  return creators;
}

// -- getting it ------------------------------------------------------------------------------------------------------

void opened() {
  IPluginRegistry& registry = tensorrt();
  open(library());
  EXPECT(found(registry));
  open(library());
  EXPECT(count(registry) == 1);
}

void loaded() {
  void* plugins = open(library());  // before TensorRT is there: nothing to register with
  IPluginRegistry& registry = tensorrt();
  EXPECT(!found(registry));
  EXPECT(registry.loadLibrary(library().c_str()));
  EXPECT(found(registry));
  dlclose(plugins);
  EXPECT(std::strcmp(found(registry)->getPluginName(), "ExitDecision") == 0);
}

void alone() {
  std::int32_t creators = 0;
  void* plugins = open(library());
  auto* list = symbol<IPluginCreatorInterface* const* (*)(std::int32_t&)>(plugins, "getCreators")(creators);
  EXPECT(creators == 1 && list[0]);
  EXPECT(!static_cast<IPluginCreatorV3One*>(list[0])->createPlugin("", nullptr, TensorRTPhase::kRUNTIME));
}

// TensorRT's loadLibrary refuses, and may close the library, whose creator the registry has all the same.
void both() {
  IPluginRegistry& registry = tensorrt();
  void* plugins = open(library());
  EXPECT(!registry.loadLibrary(library().c_str()));
  dlclose(plugins);
  EXPECT(count(registry) == 1 && std::strcmp(found(registry)->getPluginVersion(), "1") == 0);
}

// -- using it --------------------------------------------------------------------------------------------------------

struct Owner {
  std::unique_ptr<IPluginV3> plugin;
  template <typename T>
  T* as(PluginCapabilityType type) const {
    return static_cast<T*>(plugin->getCapabilityInterface(type));
  }
  IPluginV3OneCore& core() const { return *as<IPluginV3OneCore>(PluginCapabilityType::kCORE); }
  IPluginV3OneBuild& build() const { return *as<IPluginV3OneBuild>(PluginCapabilityType::kBUILD); }
  IPluginV3OneRuntime& runtime() const { return *as<IPluginV3OneRuntime>(PluginCapabilityType::kRUNTIME); }
};

IPluginCreatorV3One& creator() {
  IPluginRegistry& registry = tensorrt();
  open(library());
  return *found(registry);
}

Owner made() {
  const PluginFieldCollection none{0, nullptr};
  return {std::unique_ptr<IPluginV3>(creator().createPlugin("node", &none, TensorRTPhase::kBUILD))};
}

PluginTensorDesc tensor(DataType type, std::initializer_list<std::int64_t> shape,
                        TensorFormat format = TensorFormat::kLINEAR) {
  PluginTensorDesc made{};
  made.type = type;
  made.format = format;
  for (std::int64_t d : shape) made.dims.d[made.dims.nbDims++] = d;
  return made;
}

DynamicPluginTensorDesc dynamic(const PluginTensorDesc& desc, std::initializer_list<std::int64_t> most = {}) {
  DynamicPluginTensorDesc made{};
  made.desc = desc;
  for (std::int64_t d : most) made.max.d[made.max.nbDims++] = d;
  return made;
}

const DataType kOutputTypes[] = {DataType::kINT64, DataType::kFLOAT, DataType::kFLOAT, DataType::kFLOAT,
                                 DataType::kINT32};
const DataType kLogitTypes[] = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16};
const DataType kEveryType[] = {DataType::kFLOAT, DataType::kHALF, DataType::kINT8, DataType::kINT32, DataType::kBOOL,
                               DataType::kUINT8, DataType::kFP8,  DataType::kBF16, DataType::kINT64, DataType::kINT4};

void building() {
  const Owner owner = made();
  EXPECT(std::strcmp(owner.core().getPluginName(), "ExitDecision") == 0);
  EXPECT(std::strcmp(owner.core().getPluginVersion(), "1") == 0 && !*owner.core().getPluginNamespace());
  EXPECT(owner.build().getNbOutputs() == 5);
  EXPECT(owner.build().getTimingCacheID());
  EXPECT(owner.build().getNbTactics() == 0);
  EXPECT(creator().getFieldNames()->nbFields == 0);  // what the parser would look for among a node's attributes
  for (DataType type : kLogitTypes) {
    DataType outputs[5] = {};
    const DataType inputs[] = {type, DataType::kFLOAT};
    EXPECT(owner.build().getOutputDataTypes(outputs, 5, inputs, 2) == 0);
    EXPECT(std::memcmp(outputs, kOutputTypes, sizeof outputs) == 0);
  }
  const DataType integers[] = {DataType::kINT32, DataType::kFLOAT}, narrow[] = {DataType::kFLOAT, DataType::kHALF};
  DataType outputs[5] = {};
  EXPECT(owner.build().getOutputDataTypes(outputs, 5, integers, 2) != 0);
  EXPECT(owner.build().getOutputDataTypes(outputs, 5, narrow, 2) != 0);
  EXPECT(owner.build().getOutputDataTypes(outputs, 4, narrow, 2) != 0);
}

void formats() {
  const Owner owner = made();
  for (int at = 0; at < 7; ++at) {
    for (DataType type : kEveryType) {
      for (TensorFormat format : {TensorFormat::kLINEAR, TensorFormat::kCHW4, TensorFormat::kHWC8}) {
        DynamicPluginTensorDesc tensors[7] = {};
        tensors[at].desc = tensor(type, {-1}, format);
        const bool logits = type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
        const bool fits = at == 0 ? logits : type == (at == 1 ? DataType::kFLOAT : kOutputTypes[at - 2]);
        EXPECT(owner.build().supportsFormatCombination(at, tensors, 2, 5) == (fits && format == TensorFormat::kLINEAR));
      }
    }
  }
  const DynamicPluginTensorDesc tensors[8] = {};
  EXPECT(!owner.build().supportsFormatCombination(7, tensors, 2, 5));
  EXPECT(!owner.build().supportsFormatCombination(-1, tensors, 2, 5));
  EXPECT(!owner.build().supportsFormatCombination(0, tensors, 1, 5));
}

class Expression final : public IDimensionExpr {};
class Builder final : public IExprBuilder {};

void shapes() {
  const Owner owner = made();
  Expression rows, vocab, criteria;
  Builder builder;
  DimsExprs inputs[2] = {}, outputs[5] = {};
  inputs[0].nbDims = inputs[1].nbDims = 2;
  inputs[0].d[0] = inputs[1].d[0] = &rows, inputs[0].d[1] = &vocab, inputs[1].d[1] = &criteria;
  EXPECT(owner.build().getOutputShapes(inputs, 2, nullptr, 0, outputs, 5, builder) == 0);
  for (const DimsExprs& output : outputs) EXPECT(output.nbDims == 1 && output.d[0] == &rows);
  EXPECT(owner.build().getOutputShapes(inputs, 1, nullptr, 0, outputs, 5, builder) != 0);
  inputs[0].nbDims = 3;
  EXPECT(owner.build().getOutputShapes(inputs, 2, nullptr, 0, outputs, 5, builder) != 0);
  inputs[0].nbDims = 2, inputs[1].nbDims = 1;
  EXPECT(owner.build().getOutputShapes(inputs, 2, nullptr, 0, outputs, 5, builder) != 0);
}

struct Case {
  const char* why;  // what the logger is told; nullptr: it is right
  PluginTensorDesc logits, thresholds;
};

const std::int64_t kHuge = std::int64_t{1} << 31;
const Case kCases[] = {
    {nullptr, tensor(DataType::kFLOAT, {3, 50}), tensor(DataType::kFLOAT, {3, 3})},
    {nullptr, tensor(DataType::kHALF, {1, 151936}), tensor(DataType::kFLOAT, {1, 3})},
    {nullptr, tensor(DataType::kBF16, {256, 1}), tensor(DataType::kFLOAT, {256, 3})},
    {"float32, float16 or bfloat16", tensor(DataType::kINT8, {3, 50}), tensor(DataType::kFLOAT, {3, 3})},
    {"have to be float32", tensor(DataType::kFLOAT, {3, 50}), tensor(DataType::kHALF, {3, 3})},
    {"linear", tensor(DataType::kHALF, {3, 50}, TensorFormat::kCHW4), tensor(DataType::kFLOAT, {3, 3})},
    {"linear", tensor(DataType::kHALF, {3, 50}), tensor(DataType::kFLOAT, {3, 3}, TensorFormat::kCHW32)},
    {"[N, V]", tensor(DataType::kFLOAT, {150}), tensor(DataType::kFLOAT, {3, 3})},
    {"[N, V]", tensor(DataType::kFLOAT, {1, 3, 50}), tensor(DataType::kFLOAT, {3, 3})},
    {"[N, V]", tensor(DataType::kFLOAT, {3, kHuge}), tensor(DataType::kFLOAT, {3, 3})},
    {"[N, V]", tensor(DataType::kFLOAT, {kHuge, 50}), tensor(DataType::kFLOAT, {kHuge, 3})},
    {"no token", tensor(DataType::kFLOAT, {3, 0}), tensor(DataType::kFLOAT, {3, 3})},
    {"[N, 3]", tensor(DataType::kFLOAT, {3, 50}), tensor(DataType::kFLOAT, {3, 2})},
    {"[N, 3]", tensor(DataType::kFLOAT, {3, 50}), tensor(DataType::kFLOAT, {9})},
    {"differ in rows", tensor(DataType::kFLOAT, {3, 50}), tensor(DataType::kFLOAT, {1, 3})},
};

// Each case at each of the three places where TensorRT says shapes.
void refusals() {
  const Owner owner = made();
  PluginTensorDesc outputs[5] = {};
  for (const Case& one : kCases) {
    std::printf("wanted: %s\n", one.why ? one.why : "nothing");
    const PluginTensorDesc inputs[] = {one.logits, one.thresholds};
    const DynamicPluginTensorDesc dynamics[] = {dynamic(one.logits), dynamic(one.thresholds)};
    const void* reads[2] = {};
    void* writes[5] = {};
    const int before = launches().count;
    EXPECT((owner.build().configurePlugin(dynamics, 2, nullptr, 5) == 0) == !one.why);
    EXPECT((owner.runtime().onShapeChange(inputs, 2, outputs, 5) == 0) == !one.why);
    EXPECT((owner.runtime().enqueue(inputs, outputs, reads, writes, nullptr, nullptr) == 0) == !one.why);
    EXPECT(launches().count == before + !one.why);
  }
}

void unknown_shapes() {
  const Owner owner = made();
  const PluginTensorDesc inputs[] = {tensor(DataType::kHALF, {-1, -1}), tensor(DataType::kFLOAT, {-1, 3})};
  const DynamicPluginTensorDesc dynamics[] = {dynamic(inputs[0], {8, 49152}), dynamic(inputs[1], {8, 3})};
  EXPECT(owner.build().configurePlugin(dynamics, 2, nullptr, 5) == 0);
  EXPECT(owner.build().configurePlugin(dynamics, 2, nullptr, 4) != 0);
  EXPECT(owner.build().getWorkspaceSize(dynamics, 2, nullptr, 5) == 8 * 1000 + 49152);
  EXPECT(owner.runtime().enqueue(inputs, nullptr, nullptr, nullptr, nullptr, nullptr) != 0);
  EXPECT(launches().count == 0);
}

void running() {
  const Owner owner = made();
  const std::unique_ptr<IPluginV3> context(owner.runtime().attachToContext(nullptr));
  EXPECT(context && context.get() != owner.plugin.get());
  auto& runtime = *static_cast<IPluginV3OneRuntime*>(context->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  const eecompile::LogitType types[] = {eecompile::LogitType::kFloat32, eecompile::LogitType::kFloat16,
                                        eecompile::LogitType::kBFloat16};
  char memory[8];
  const void* reads[] = {memory, memory + 1};
  void* writes[] = {memory + 2, memory + 3, memory + 4, memory + 5, memory + 6};
  const auto stream = reinterpret_cast<cudaStream_t>(memory);
  PluginTensorDesc outputs[5] = {};
  for (int i = 0; i < 3; ++i) {
    const PluginTensorDesc inputs[] = {tensor(kLogitTypes[i], {7, 1001}), tensor(DataType::kFLOAT, {7, 3})};
    EXPECT(runtime.onShapeChange(inputs, 2, outputs, 5) == 0);
    EXPECT(runtime.enqueue(inputs, outputs, reads, writes, memory + 7, stream) == 0);
    const Launches& saw = launches();
    EXPECT(saw.count == i + 1 && saw.after_prepare && saw.prepared == memory + 7 && saw.prepared_rows == 7);
    EXPECT(saw.prepared_on == stream && saw.logits.type == types[i] && saw.logits.data == memory);
    EXPECT(saw.logits.rows == 7 && saw.logits.vocab == 1001 && saw.logits.stride == 1001);
    const void* used[] = {saw.bounds,     saw.out.token,   saw.out.max_prob,
                          saw.out.margin, saw.out.entropy, saw.out.exit_flag};
    for (int k = 0; k < 6; ++k) EXPECT(used[k] == memory + 1 + k);
  }
  const PluginTensorDesc none[] = {tensor(DataType::kFLOAT, {0, 50}), tensor(DataType::kFLOAT, {0, 3})};
  EXPECT(runtime.enqueue(none, outputs, reads, writes, memory, stream) == 0);
  EXPECT(launches().count == 3);
  launches().fails = true;
  const PluginTensorDesc inputs[] = {tensor(DataType::kFLOAT, {7, 50}), tensor(DataType::kFLOAT, {7, 3})};
  EXPECT(runtime.enqueue(inputs, outputs, reads, writes, memory, stream) != 0);
  EXPECT(launches().count == 3);
}

void serialising() {
  const Owner owner = made();
  const Owner copy{std::unique_ptr<IPluginV3>(owner.plugin->clone())};
  EXPECT(copy.plugin && copy.plugin.get() != owner.plugin.get());
  const PluginFieldCollection written = *copy.runtime().getFieldsToSerialize();
  EXPECT(written.nbFields == 1);
  PluginField field = written.fields[0];
  std::int32_t value = *static_cast<const std::int32_t*>(field.data);
  field.data = &value;
  const PluginFieldCollection read{1, &field};
  const auto again = [&](const PluginFieldCollection* fields) {
    return std::unique_ptr<IPluginV3>(creator().createPlugin("node", fields, TensorRTPhase::kRUNTIME));
  };
  EXPECT(again(&read));
  value += 1;
  EXPECT(!again(&read));
  value -= 1, field.type = PluginFieldType::kFLOAT32;
  EXPECT(!again(&read));
  field.type = PluginFieldType::kINT32, field.name = "other";
  EXPECT(!again(&read));
  const PluginFieldCollection none{0, nullptr};
  EXPECT(!again(&none));
  EXPECT(!again(nullptr));
}

const std::map<std::string, std::function<void()>> kScenarios = {
    {"opened", opened},   {"loaded", loaded},           {"alone", alone},
    {"both", both},       {"building", building},       {"formats", formats},
    {"shapes", shapes},   {"refusals", refusals},       {"unknown_shapes", unknown_shapes},
    {"running", running}, {"serialising", serialising},
};

}  // namespace

int main(int count, char** arguments) {
  if (count != 3 || !kScenarios.count(arguments[2])) return 2;
  folder = arguments[1];
  kScenarios.at(arguments[2])();
  return faults ? 1 : 0;
}
