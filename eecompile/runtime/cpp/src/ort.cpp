#include "ort.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <functional>
#include <mutex>

#include <onnxruntime_c_api.h>

#include "fault.h"
#include "ort_allocator.h"

namespace eecompile {
namespace {

constexpr const char* kCuda = "CUDAExecutionProvider";
constexpr const char* kCudaMend =
    "name a libonnxruntime.so.1 that has it, with the CUDA and cuDNN that it asks for; or use the back end onnxruntime";

struct Dtype {
  std::string_view name;
  ONNXTensorElementDataType type;
};

constexpr std::array<Dtype, 5> kTypes = {{{"float32", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},
                                           {"float16", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16},
                                           {"int8", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8},
                                           {"int64", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64},
                                           {"bool", ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL}}};

const Dtype& dtype_of(std::string_view name) {
  return *std::find_if(kTypes.begin(), kTypes.end() - 1, [&](const Dtype& d) { return d.name == name; });
}

// The message of a failed call, which is freed; empty where it succeeded.
std::string failure(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return "";
  std::string said = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  return said.empty() ? "it does not say why" : said;
}

// Something of the library's that is given back.
template <typename T>
using Held = std::unique_ptr<T, std::function<void(T*)>>;

// Runs steps until one fails.
class Chain {
 public:
  explicit Chain(const OrtApi& api) : api_(api) {}
  Chain& then(OrtStatus* status) {
    std::string said = failure(api_, status);
    if (said_.empty()) said_ = std::move(said);
    return *this;
  }
  bool ok() const { return said_.empty(); }
  const std::string& said() const { return said_; }

 private:
  const OrtApi& api_;
  std::string said_;
};

Status missing(std::string what, const std::string& where) {
  return {Code::kMissingBackend, std::move(what), where,
          "install ONNX Runtime 1.21 or newer, or name its libonnxruntime.so.1"};
}

const OrtApi* api_of(const std::string& path, std::string& reason) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* said = dlerror();
    reason = said == nullptr ? "ONNX Runtime cannot be loaded" : std::string("ONNX Runtime cannot be loaded: ") + said;
    return nullptr;
  }
  using Base = const OrtApiBase* (*)();
  void* symbol = dlsym(library, "OrtGetApiBase");
  const OrtApi* api = symbol == nullptr ? nullptr : reinterpret_cast<Base>(symbol)()->GetApi(ORT_API_VERSION);
  if (api == nullptr) reason = "this ONNX Runtime is too old";
  return api;
}

std::string describe(ONNXTensorElementDataType type, const std::vector<std::int64_t>& shape,
                     const std::vector<const char*>& symbols) {
  const auto known = std::find_if(kTypes.begin(), kTypes.end(), [&](const Dtype& d) { return d.type == type; });
  std::string text = known == kTypes.end() ? "another type" : std::string(known->name);
  for (std::size_t i = 0; i < shape.size(); ++i)
    text += " " + (shape[i] < 0 ? std::string(symbols[i]) : std::to_string(shape[i]));
  return text;
}

std::string describe(const TensorInfo& info) {
  std::vector<const char*> symbols;
  for (const std::string& symbol : info.symbols) symbols.push_back(symbol.c_str());
  return describe(dtype_of(info.dtype).type, info.shape, symbols);
}

class OrtPass : public Pass {
 public:
  OrtPass(std::shared_ptr<const OrtLibrary> library, OrtSession* session, OrtIoBinding* binding)
      : library_(std::move(library)), session_(session), binding_(binding) {}
  ~OrtPass() override { library_->api().ReleaseIoBinding(binding_); }

  Status run() override {
    const PassClock clock;
    const OrtApi& api = library_->api();
    const std::string said = failure(api, api.RunWithBinding(session_, nullptr, binding_));
    if (said.empty()) return {};
    return {Code::kInternal, "a pass failed: " + said, "", "check the bundle with `eecompile verify`"};
  }

 private:
  std::shared_ptr<const OrtLibrary> library_;
  OrtSession* session_;  // its engine's, which outlives it
  OrtIoBinding* binding_;
};

// A pass on a GPU. What the host writes is copied there before each run, and what it reads is copied back: ONNX Runtime
// itself copies a host's input when it is bound and never again (microsoft/onnxruntime issue 5857).
class OrtGpuPass : public Pass {
 public:
  explicit OrtGpuPass(OrtGpu place) : place_(std::move(place)) {}

  // Where the GPU finds `buffer`, a copy of which goes there, or comes from there, with each run.
  void* mirror(const Buffer& buffer, bool input) {
    copies_.push_back({place_.memory->scratch(buffer.bytes()), buffer.data, buffer.bytes(), input});
    return copies_.back().own.get();
  }
  void set(std::unique_ptr<Pass> pass) { pass_ = std::move(pass); }

  Status run() override {
    Gpu& gpu = *place_.gpu;
    const Gpu::Turn turn(gpu);
    const PassClock clock;
    if (Status status = copy(true); !status.ok()) return status;
    if (Status status = pass_->run(); !status.ok()) return status;
    if (Status status = copy(false); !status.ok()) return status;
    return gpu.wait(turn);
  }

 private:
  struct Copy {
    Block own;
    void* host;
    std::size_t bytes;
    bool input;
  };

  Status copy(bool input) const {
    const Gpu& gpu = *place_.gpu;
    for (const Copy& one : copies_) {
      if (one.input != input || one.bytes == 0) continue;
      const auto own = reinterpret_cast<DeviceAddress>(one.own.get());
      const int code = input ? gpu.driver().cuMemcpyHtoDAsync_v2(own, one.host, one.bytes, gpu.stream())
                             : gpu.driver().cuMemcpyDtoHAsync_v2(one.host, own, one.bytes, gpu.stream());
      if (Status status = gpu.checked(code, "cuMemcpyAsync"); !status.ok()) return status;
    }
    return {};
  }

  OrtGpu place_;
  std::vector<Copy> copies_;
  std::unique_ptr<Pass> pass_;
};

class OrtEngine : public Engine {
 public:
  OrtEngine(std::shared_ptr<const OrtLibrary> library, OrtSession* session, GraphInfo info, OrtGpu gpu)
      : library_(std::move(library)),
        session_(session),
        info_(std::move(info)),
        gpu_(std::move(gpu)),
        memory_(gpu_.memory ? std::shared_ptr<Memory>(gpu_.memory) : host_memory()) {}
  ~OrtEngine() override { library_->api().ReleaseSession(session_); }

  const GraphInfo& info() const override { return info_; }
  const std::shared_ptr<Memory>& memory() const override { return memory_; }
  Result<std::unique_ptr<Pass>> bind(const Buffers& buffers) const override;
  Status check_interface(const std::string& where) const;
  Status check_provider(const std::string& where) const;

 private:
  std::shared_ptr<const OrtLibrary> library_;
  OrtSession* session_;
  GraphInfo info_;
  OrtGpu gpu_;
  std::shared_ptr<Memory> memory_;
};

Status OrtEngine::check_interface(const std::string& where) const {
  const OrtApi& api = library_->api();
  OrtAllocator* allocator = nullptr;
  Chain chain(api);
  chain.then(api.GetAllocatorWithDefaultOptions(&allocator));
  for (const bool input : {true, false}) {
    const std::vector<TensorInfo>& declared = input ? info_.inputs : info_.outputs;
    std::size_t count = 0;
    if (chain.ok()) chain.then((input ? api.SessionGetInputCount : api.SessionGetOutputCount)(session_, &count));
    if (chain.ok() && count != declared.size())
      return damaged("it has another number of inputs or outputs than the manifest says", where);
    for (std::size_t i = 0; i < count && chain.ok(); ++i) {
      char* name = nullptr;
      OrtTypeInfo* type = nullptr;
      chain.then((input ? api.SessionGetInputName : api.SessionGetOutputName)(session_, i, allocator, &name));
      const Held<char> named(name, [&](char* n) { failure(api, api.AllocatorFree(allocator, n)); });
      const std::string own = name == nullptr ? "" : name;
      chain.then((input ? api.SessionGetInputTypeInfo : api.SessionGetOutputTypeInfo)(session_, i, &type));
      const Held<OrtTypeInfo> held(type, [&](OrtTypeInfo* t) { api.ReleaseTypeInfo(t); });
      const OrtTensorTypeAndShapeInfo* tensor = nullptr;
      if (chain.ok()) chain.then(api.CastTypeInfoToTensorInfo(type, &tensor));
      if (chain.ok() && tensor == nullptr) return damaged("its " + own + " is no tensor", where);
      std::size_t rank = 0;
      ONNXTensorElementDataType element = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
      if (chain.ok())
        chain.then(api.GetDimensionsCount(tensor, &rank)).then(api.GetTensorElementType(tensor, &element));
      std::vector<std::int64_t> shape(rank);
      std::vector<const char*> symbols(rank);
      if (chain.ok())
        chain.then(api.GetDimensions(tensor, shape.data(), rank))
            .then(api.GetSymbolicDimensions(tensor, symbols.data(), rank));
      if (!chain.ok()) break;
      const std::string have = own + ", " + describe(element, shape, symbols),
                        said = declared[i].name + ", " + describe(declared[i]);
      if (have != said)
        return damaged("it has " + have.substr(0, 200) + "; the manifest says " + said.substr(0, 200), where);
    }
  }
  return chain.ok() ? Status{} : damaged("its interface cannot be read: " + chain.said(), where);
}

// That the session has the GPU: a session without the CUDA provider has no allocator of its memory.
Status OrtEngine::check_provider(const std::string& where) const {
  if (!gpu_.gpu) return {};
  const OrtApi& api = library_->api();
  OrtMemoryInfo* memory = nullptr;
  OrtAllocator* allocator = nullptr;
  Chain chain(api);
  chain.then(api.CreateMemoryInfo("Cuda", OrtDeviceAllocator, 0, OrtMemTypeDefault, &memory));
  if (chain.ok()) chain.then(api.CreateAllocator(session_, memory, &allocator));
  if (allocator != nullptr) api.ReleaseAllocator(allocator);
  if (memory != nullptr) api.ReleaseMemoryInfo(memory);
  if (chain.ok()) return {};
  return {Code::kMissingBackend, std::string("the session did not get ") + kCuda + ": " + chain.said(), where,
          kCudaMend};
}

Result<std::unique_ptr<Pass>> OrtEngine::bind(const Buffers& buffers) const {
  const OrtApi& api = library_->api();
  OrtIoBinding* binding = nullptr;
  OrtMemoryInfo* memory = nullptr;
  Chain chain(api);
  chain.then(api.CreateIoBinding(session_, &binding))
      .then(gpu_.gpu ? api.CreateMemoryInfo("Cuda", OrtDeviceAllocator, 0, OrtMemTypeDefault, &memory)
                     : api.CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
  const Held<OrtMemoryInfo> held(memory, [&](OrtMemoryInfo* m) { api.ReleaseMemoryInfo(m); });
  Held<OrtIoBinding> own(binding, [&](OrtIoBinding* b) { api.ReleaseIoBinding(b); });
  std::unique_ptr<Pass> pass = std::make_unique<OrtPass>(library_, session_, binding);
  own.release();
  std::unique_ptr<OrtGpuPass> outer = gpu_.gpu ? std::make_unique<OrtGpuPass>(gpu_) : nullptr;
  for (const bool input : {true, false})
    for (const TensorInfo& tensor : input ? info_.inputs : info_.outputs) {
      const auto found = buffers.find(tensor.name);
      if (found == buffers.end() && input)
        return Status{Code::kInternal, "the graph's input " + tensor.name + " has no buffer", info_.path, ""};
      if (found == buffers.end() || !chain.ok()) continue;
      const Buffer& b = found->second;
      if (gpu_.gpu)
        if (Status status = gpu_.memory->check(b, tensor.name); !status.ok()) return status;
      void* data = gpu_.gpu && !gpu_.memory->on_gpu(b) ? outer->mirror(b, input) : b.data;
      OrtValue* value = nullptr;
      chain.then(api.CreateTensorWithDataAsOrtValue(memory, data, b.bytes(), b.shape.data(), b.shape.size(),
                                                    dtype_of(b.dtype).type, &value));
      if (chain.ok()) chain.then((input ? api.BindInput : api.BindOutput)(binding, tensor.name.c_str(), value));
      if (value != nullptr) api.ReleaseValue(value);
    }
  if (!chain.ok()) return Status{Code::kInternal, "the graph cannot be bound: " + chain.said(), info_.path, ""};
  if (!outer) return pass;
  outer->set(std::move(pass));
  return std::unique_ptr<Pass>(std::move(outer));
}

// Adds the CUDA provider, on the GPU's stream.
void add_cuda(const OrtApi& api, OrtSessionOptions* options, const Gpu& gpu, Chain& chain) {
  OrtCUDAProviderOptionsV2* cuda = nullptr;
  chain.then(api.CreateCUDAProviderOptions(&cuda));
  if (chain.ok()) chain.then(api.UpdateCUDAProviderOptionsWithValue(cuda, "user_compute_stream", gpu.stream()));
  if (chain.ok()) chain.then(api.SessionOptionsAppendExecutionProvider_CUDA_V2(options, cuda));
  if (cuda != nullptr) api.ReleaseCUDAProviderOptions(cuda);
}

}  // namespace

Result<std::shared_ptr<const OrtLibrary>> OrtLibrary::open(const std::string& path, int threads) {
  static std::mutex mutex;
  static std::shared_ptr<OrtLibrary> made;  // ONNX Runtime has one environment a process
  const std::lock_guard<std::mutex> lock(mutex);
  if (threads < 1) return Status{Code::kUsage, std::to_string(threads) + " threads are none", "", "give at least one"};
  if (made && made->threads_ != threads)
    return Status{
        Code::kUsage,
        "this process already runs " + std::to_string(made->threads_) + " threads, not " + std::to_string(threads), "",
        "one process has one thread pool: choose its size at the first open"};
  if (made) return std::shared_ptr<const OrtLibrary>(made);
  std::string reason;
  const OrtApi* api = api_of(path, reason);
  if (api == nullptr) return missing(reason, path);
  const std::shared_ptr<OrtLibrary> found(new OrtLibrary());
  found->api_ = api;
  found->threads_ = threads;
  OrtThreadingOptions* options = nullptr;
  Chain chain(*api);
  chain.then(api->CreateThreadingOptions(&options));
  if (chain.ok())
    chain.then(api->SetGlobalIntraOpNumThreads(options, threads)).then(api->SetGlobalInterOpNumThreads(options, 1));
  if (chain.ok())
    chain.then(
        api->CreateEnvWithGlobalThreadPools(ORT_LOGGING_LEVEL_ERROR, "eecompile", options, &found->environment_));
  if (options != nullptr) api->ReleaseThreadingOptions(options);
  if (!chain.ok()) return missing("ONNX Runtime does not start: " + chain.said(), path);
  // an application that has given this environment memory of its own keeps it
  found->large_pages_ = failure(*api, register_allocator(*api, found->environment_)).empty();
  made = found;
  return std::shared_ptr<const OrtLibrary>(made);
}

Status OrtLibrary::check_cuda() const {
  char** names = nullptr;
  int count = 0;
  Chain chain(*api_);
  chain.then(api_->GetAvailableProviders(&names, &count));
  std::string all;
  bool found = false;
  for (int i = 0; i < count && names != nullptr; ++i) {
    found |= std::string_view(names[i]) == kCuda;
    all += (i == 0 ? "" : ", ") + std::string(names[i]);
  }
  if (names != nullptr) chain.then(api_->ReleaseAvailableProviders(names, count));
  if (found) return {};
  return {Code::kMissingBackend,
          std::string("the back end cuda needs ") + kCuda + ", and this ONNX Runtime has " +
              (all.empty() ? "none" : all),
          "", kCudaMend};
}

Result<SharedEngine> open_ort(std::shared_ptr<const OrtLibrary> library, const std::string& path, GraphInfo info,
                              const OrtGpu& gpu, bool varied) {
  const OrtApi& api = library->api();
  OrtSessionOptions* options = nullptr;
  OrtSession* session = nullptr;
  Chain chain(api);
  chain.then(api.CreateSessionOptions(&options));
  if (chain.ok())
    chain.then(api.DisablePerSessionThreads(options))
        .then(api.SetSessionLogSeverityLevel(options, ORT_LOGGING_LEVEL_ERROR))
        .then(api.AddSessionConfigEntry(options, "session.qdq_matmulnbits_accuracy_level", "4"));
  if (chain.ok() && library->large_pages() && !varied)
    chain.then(api.AddSessionConfigEntry(options, "session.use_env_allocators", "1"));
  if (chain.ok() && gpu.gpu) add_cuda(api, options, *gpu.gpu, chain);
  if (chain.ok() && varied) chain.then(api.DisableCpuMemArena(options)).then(api.DisableMemPattern(options));
  const TakesWeights weights;
  if (chain.ok()) chain.then(api.CreateSession(library->environment(), path.c_str(), options, &session));
  if (options != nullptr) api.ReleaseSessionOptions(options);
  if (chain.said().find("CreateEnvWithGlobalThreadPools") != std::string::npos)  // as it says where there is none
    return usage("this process runs ONNX Runtime without a thread pool that sessions share",
                 "open the first bundle before anything else uses ONNX Runtime, or make its environment there with "
                 "CreateEnvWithGlobalThreadPools");
  if (!chain.ok() && gpu.gpu)
    return Status{Code::kMissingBackend, "ONNX Runtime cannot load it on a GPU: " + chain.said(), path, kCudaMend};
  if (!chain.ok()) return damaged("ONNX Runtime cannot load it: " + chain.said(), path, "build the bundle again");
  Held<OrtSession> own(session, [&](OrtSession* s) { api.ReleaseSession(s); });
  auto engine = std::make_shared<const OrtEngine>(std::move(library), session, std::move(info), gpu);
  own.release();
  if (Status status = engine->check_interface(path); !status.ok()) return status;
  if (Status status = engine->check_provider(path); !status.ok()) return status;
  return SharedEngine(std::move(engine));
}

}  // namespace eecompile
