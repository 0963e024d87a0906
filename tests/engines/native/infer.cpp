// A double of libnvinfer whose engines are ONNX files that ONNX Runtime runs, and which enforces TensorRT's rules: a
// "plan" is JSON (doubled.py). stubs.h, made of the vendor's header, ends the process where anything else is called.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>

#include <NvOnnxParser.h>

#include "graph.h"
#include "stubs.h"

using nlohmann::json;
using namespace nvinfer1;
using doubles::api, doubles::broken, doubles::dims, doubles::Graph, doubles::must, doubles::setting, doubles::Shape,
    doubles::Tensor;

namespace {

constexpr std::size_t kAligned = 256;

// The shapes and addresses of a pass that may run.
struct Pass {
  int profile = -1;
  std::map<std::string, Shape> shapes;
  std::map<std::string, void*> addresses;
  std::byte* scratch = nullptr;
  std::int64_t scratch_bytes = 0;

  bool operator==(const Pass& other) const {
    return profile == other.profile && shapes == other.shapes && addresses == other.addresses &&
           scratch == other.scratch && scratch_bytes == other.scratch_bytes;
  }
};

struct Plan {
  Graph graph;
  json profiles;
  std::int64_t scratch;
  std::string onnx;
  bool stripped;
};

// What a context is, beyond its life: work that waits and graphs look at it.
struct Core {
  std::shared_ptr<const Plan> plan;
  Pass pass;
  std::unique_ptr<Pass> ran;
  int changes = 0, under_way = 0;
  std::atomic<bool> busy = false;
};

class Alone {
 public:
  Alone(Core& core, bool changes) : core_(core) {
    if (core_.busy.exchange(true)) broken("two threads use a context at once");
    if (changes && core_.under_way > 0) broken("a context is changed while its work is under way");
    core_.changes += changes;
  }
  ~Alone() { core_.busy = false; }

 private:
  Core& core_;
};

std::map<std::string, Shape> all_shapes(const Core& core) {
  std::map<std::string, std::int64_t> sizes;
  std::map<std::string, Shape> shapes = core.pass.shapes;
  for (const Tensor& t : core.plan->graph.tensors) {
    if (!t.input) continue;
    if (shapes.count(t.name) == 0) broken("no shape is set for " + t.name);
    for (std::size_t i = 0; i < t.shape.size(); ++i)
      if (t.shape[i] < 0) sizes[t.symbols[i]] = shapes[t.name][i];
  }
  for (const Tensor& t : core.plan->graph.tensors) {
    if (t.input) continue;
    Shape shape = t.shape;
    for (std::size_t i = 0; i < shape.size(); ++i)
      if (shape[i] < 0) shape[i] = sizes.at(t.symbols[i]);
    shapes[t.name] = shape;
  }
  return shapes;
}

std::size_t bytes_of(const Tensor& t, const Shape& shape) {
  std::size_t bytes = t.element();
  for (const std::int64_t size : shape) bytes *= static_cast<std::size_t>(size);
  return bytes;
}

// That all is set, in memory of the GPU's, and no output lies over another tensor but an update over its own input.
Pass checked(const Core& core) {
  Pass pass = core.pass;
  if (pass.scratch == nullptr) broken("no scratch memory is set");
  pass.shapes = all_shapes(core);
  std::vector<std::tuple<std::string, std::byte*, std::size_t>> places = {
      {"scratch", pass.scratch, static_cast<std::size_t>(pass.scratch_bytes)}};
  for (const Tensor& t : core.plan->graph.tensors) {
    if (pass.addresses.count(t.name) == 0) broken("no address is set for " + t.name);
    auto* data = static_cast<std::byte*>(pass.addresses[t.name]);
    places.emplace_back(t.name, data, bytes_of(t, pass.shapes[t.name]));
    doubles::inside(data, bytes_of(t, pass.shapes[t.name]), true);
  }
  for (const Tensor& t : core.plan->graph.tensors) {
    if (t.input) continue;
    auto* data = static_cast<std::byte*>(pass.addresses[t.name]);
    const std::size_t bytes = bytes_of(t, pass.shapes[t.name]);
    for (const auto& [other, at, size] : places) {
      const bool own = other == t.name || (other + "_out" == t.name && at == data);
      if (!own && data < at + size && at < data + bytes) broken(t.name + " lies over " + other);
    }
  }
  return pass;
}

void run(Core& core, const Pass& pass) {
  std::memset(pass.scratch, 0xFF, static_cast<std::size_t>(pass.scratch_bytes));
  OrtIoBinding* binding = nullptr;
  OrtMemoryInfo* memory = nullptr;
  must(api().CreateIoBinding(core.plan->graph.session, &binding));
  must(api().CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
  for (const Tensor& t : core.plan->graph.tensors) {
    const Shape& shape = pass.shapes.at(t.name);
    OrtValue* value = nullptr;
    must(api().CreateTensorWithDataAsOrtValue(memory, pass.addresses.at(t.name), bytes_of(t, shape), shape.data(),
                                              shape.size(), t.type, &value));
    must((t.input ? api().BindInput : api().BindOutput)(binding, t.name.c_str(), value));
    api().ReleaseValue(value);
  }
  must(api().RunWithBinding(core.plan->graph.session, nullptr, binding));
  api().ReleaseMemoryInfo(memory);
  api().ReleaseIoBinding(binding);
  --core.under_way;
  core.ran = std::make_unique<Pass>(pass);
}

struct ContextImpl : StubExecutionContext {
  std::shared_ptr<Core> core = std::make_shared<Core>();

  void setDeviceMemoryV2(void* memory, std::int64_t bytes) noexcept override {
    const Alone alone(*core, true);
    if (reinterpret_cast<std::uintptr_t>(memory) % kAligned || bytes < core->plan->scratch)
      broken("scratch memory that is misaligned or too small");
    doubles::inside(memory, static_cast<std::size_t>(bytes), false);
    core->pass.scratch = static_cast<std::byte*>(memory);
    core->pass.scratch_bytes = bytes;
  }
  bool setOptimizationProfileAsync(std::int32_t profile, cudaStream_t stream) noexcept override {
    const Alone alone(*core, true);
    if (doubles::captured(stream)) broken("a profile is chosen during a capture");
    core->pass.profile = profile;
    core->pass.shapes.clear();
    return profile < static_cast<int>(core->plan->profiles.size());
  }
  bool setInputShape(const char* name, const Dims& given) noexcept override {
    const Alone alone(*core, true);
    if (core->pass.profile < 0) broken("a shape before a profile");
    const Tensor& t = core->plan->graph.tensor(name);
    const Shape shape(given.d, given.d + given.nbDims);
    const bool fixed = std::find(t.shape.begin(), t.shape.end(), -1) == t.shape.end();
    const json& range = core->plan->profiles[static_cast<std::size_t>(core->pass.profile)][name];
    const Shape least = fixed ? t.shape : range[0].get<Shape>(), most = fixed ? t.shape : range[2].get<Shape>();
    if (shape.size() != least.size()) return false;
    for (std::size_t i = 0; i < shape.size(); ++i)
      if (shape[i] < least[i] || shape[i] > most[i]) return false;
    core->pass.shapes[name] = shape;
    return true;
  }
  bool setTensorAddress(const char* name, void* data) noexcept override {
    const Alone alone(*core, true);
    if (data == nullptr || reinterpret_cast<std::uintptr_t>(data) % kAligned)
      broken(std::string("the address of ") + name + " is not aligned");
    core->plan->graph.tensor(name);
    core->pass.addresses[name] = data;
    return true;
  }
  bool enqueueV3(cudaStream_t stream) noexcept override {
    const Alone alone(*core, false);
    const Pass pass = checked(*core);
    if (!doubles::captured(stream)) {
      ++core->under_way;
      doubles::count("enqueued");
      doubles::add_work(stream, [core = core, pass] { run(*core, pass); });
      return true;
    }
    if (!core->ran || !(*core->ran == pass) || core->under_way > 0)
      broken("a capture without a run of the same shapes and addresses that was waited for");
    if (setting("capture", "yes") == "no") return false;
    const std::weak_ptr<Core> weak = core;
    doubles::add_work(stream, [weak, pass, changes = core->changes] {
      const std::shared_ptr<Core> found = weak.lock();
      if (!found || found->changes != changes) broken("a graph is launched whose context was changed or is gone");
      ++found->under_way;
      run(*found, pass);
    }, setting("node", "kernel"));
    return true;
  }
};

struct Context : IExecutionContext {
  ContextImpl impl;
  explicit Context(std::shared_ptr<const Plan> plan) {
    impl.core->plan = std::move(plan);
    mImpl = &impl;
    ++doubles::contexts;
  }
  ~Context() noexcept override {
    if (impl.core->under_way > 0) broken("a context goes while its work is under way");
    --doubles::contexts;
  }
};

struct EngineImpl : StubCudaEngine {
  std::shared_ptr<Plan> plan;

  std::int32_t getNbIOTensors() const noexcept override {
    return static_cast<std::int32_t>(plan->graph.tensors.size());
  }
  const char* getIOTensorName(std::int32_t i) const noexcept override {
    return plan->graph.tensors[static_cast<std::size_t>(i)].name.c_str();
  }
  DataType getTensorDataType(const char* name) const noexcept override { return plan->graph.tensor(name).kind(); }
  Dims getTensorShape(const char* name) const noexcept override { return dims(plan->graph.tensor(name).shape); }
  std::int32_t getNbOptimizationProfiles() const noexcept override {
    return static_cast<std::int32_t>(plan->profiles.size());
  }
  Dims getProfileShape(const char* name, std::int32_t profile, OptProfileSelector which) const noexcept override {
    const Tensor& t = plan->graph.tensor(name);
    if (!t.input || std::find(t.shape.begin(), t.shape.end(), -1) == t.shape.end())
      broken(t.name + " has no profile: it is an output or of one shape");
    const json& range = plan->profiles[static_cast<std::size_t>(profile)][name];
    return dims(range[which == OptProfileSelector::kMIN ? 0 : which == OptProfileSelector::kOPT ? 1 : 2].get<Shape>());
  }
  std::int64_t getDeviceMemorySizeV2() const noexcept override { return plan->scratch; }
  IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept override {
    if (plan->stripped) broken("an engine without its weights");
    if (strategy != ExecutionContextAllocationStrategy::kUSER_MANAGED) broken("scratch memory of a context's own");
    return new Context(plan);
  }
};

struct Engine : ICudaEngine {
  EngineImpl impl;
  explicit Engine(const json& plan) {
    const std::string onnx = plan["onnx"];
    impl.plan.reset(new Plan{Graph(onnx), plan["profiles"], 0, onnx, plan["stripped"]});
    impl.plan->scratch = 1000 + 300 * static_cast<std::int64_t>(impl.plan->graph.tensors.size());
    mImpl = &impl;
  }
};

struct RuntimeImpl : StubRuntime {
  ILogger* logger = nullptr;
  ICudaEngine* deserializeCudaEngine(const void* data, std::size_t bytes) noexcept override {
    const auto* text = static_cast<const char*>(data);
    const json plan = json::parse(text, text + bytes, nullptr, false);
    doubles::count("deserialised");
    if (!plan.is_discarded()) return new Engine(plan);
    logger->log(ILogger::Severity::kERROR, "the double sees no plan");
    return nullptr;
  }
};

struct Runtime : IRuntime {
  RuntimeImpl impl;
  explicit Runtime(ILogger* logger) {
    impl.logger = logger;
    mImpl = &impl;
  }
};

struct RefitterImpl : StubRefitter {
  Plan* plan = nullptr;
  std::string weights;

  std::int32_t getMissingWeights(std::int32_t, const char**) noexcept override { return weights.empty() ? 3 : 0; }
  bool refitCudaEngine() noexcept override {
    plan->stripped = weights != plan->onnx;
    return !plan->stripped;
  }
};

struct Refitter : IRefitter {
  RefitterImpl impl;
  explicit Refitter(Plan& plan) {
    impl.plan = &plan;
    mImpl = &impl;
  }
};

struct ParserRefitter : nvonnxparser::IParserRefitter {
  RefitterImpl* refitter;
  explicit ParserRefitter(RefitterImpl& one) : refitter(&one) {}
  bool refitFromFile(const char* file) noexcept override { return refitter->weights = file, true; }
  int getNbErrors() const noexcept override { return 0; }
  const nvonnxparser::IParserError* getError(int) const noexcept override { return nullptr; }
};

std::int32_t part(int number) {
  const std::string version = setting("version", "10.16.2.11");
  int parts[4] = {};
  std::sscanf(version.c_str(), "%d.%d.%d.%d", &parts[0], &parts[1], &parts[2], &parts[3]);
  return parts[number];
}

}  // namespace

extern "C" {
void* createInferRuntime_INTERNAL(void* logger, std::int32_t version) noexcept {
  if (version != NV_TENSORRT_VERSION) broken("a runtime of another version");
  return static_cast<IRuntime*>(new Runtime(static_cast<ILogger*>(logger)));
}
void* createInferRefitter_INTERNAL(void* engine, void*, std::int32_t) noexcept {
  return static_cast<IRefitter*>(new Refitter(*static_cast<Engine*>(static_cast<ICudaEngine*>(engine))->impl.plan));
}
void* createNvOnnxParserRefitter_INTERNAL(void* refitter, void*, std::int32_t) noexcept {
  auto* found = static_cast<Refitter*>(static_cast<IRefitter*>(refitter));
  return static_cast<nvonnxparser::IParserRefitter*>(new ParserRefitter(found->impl));
}
std::int32_t getInferLibMajorVersion() noexcept { return part(0); }
std::int32_t getInferLibMinorVersion() noexcept { return part(1); }
std::int32_t getInferLibPatchVersion() noexcept { return part(2); }
std::int32_t getInferLibBuildVersion() noexcept { return part(3); }
}
