#include "gpu.h"

#include <dlfcn.h>

#include <array>

namespace eecompile {
namespace {

constexpr const char* kDriver = "libcuda.so.1";
constexpr const char* kNoGpu = "install the vendor's driver, or use the back end onnxruntime";

Status no_gpu(const std::string& why) { return {Code::kMissingBackend, "there is no GPU here: " + why, "", kNoGpu}; }

std::string words(const CudaDriver& driver, int code) {
  const char *name = nullptr, *text = nullptr;
  driver.cuGetErrorName(code, &name);
  driver.cuGetErrorString(code, &text);
  return name == nullptr || text == nullptr ? "error " + std::to_string(code) : std::string(name) + ": " + text;
}

}  // namespace

const CudaDriver* load_cuda_driver(std::string& reason) {
  static std::string fault;
  static const CudaDriver driver = [] {
    CudaDriver found;
    void* library = dlopen(kDriver, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* said = dlerror();
      fault = said == nullptr ? std::string(kDriver) + " cannot be loaded" : said;
      return found;
    }
#define EECOMPILE_LOAD(name, arguments)                                  \
  found.name = reinterpret_cast<decltype(found.name)>(dlsym(library, #name)); \
  if (found.name == nullptr && fault.empty()) fault = std::string(kDriver) + " has no " #name;
    EECOMPILE_CUDA(EECOMPILE_LOAD)
#undef EECOMPILE_LOAD
    return found;
  }();
  reason = fault;
  return fault.empty() ? &driver : nullptr;
}

Result<GpuFacts> Gpu::read_facts() {
  std::string reason;
  const CudaDriver* driver = load_cuda_driver(reason);
  if (driver == nullptr) return no_gpu(reason);
  int version = 0, device = 0, major = 0, minor = 0;
  std::array<char, 256> name{};
  for (const auto& [function, code] :
       {std::pair{"cuInit", driver->cuInit(0)}, {"cuDriverGetVersion", driver->cuDriverGetVersion(&version)},
        {"cuDeviceGet", driver->cuDeviceGet(&device, 0)},
        {"cuDeviceGetName", driver->cuDeviceGetName(name.data(), static_cast<int>(name.size()), device)},
        {"cuDeviceGetAttribute", driver->cuDeviceGetAttribute(&major, kComputeMajor, device)},
        {"cuDeviceGetAttribute", driver->cuDeviceGetAttribute(&minor, kComputeMinor, device)}})
    if (code != 0) return no_gpu(std::string(function) + " failed: " + words(*driver, code));
  const std::string cuda = std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  return GpuFacts{name.data(), cuda, 10 * major + minor};
}

Result<std::shared_ptr<Gpu>> Gpu::open() {
  Result<GpuFacts> facts = read_facts();
  if (!facts.ok()) return facts.status();
  std::string reason;
  const std::shared_ptr<Gpu> gpu(new Gpu(*load_cuda_driver(reason), std::move(*facts)));
  if (Status status = gpu->start(); !status.ok()) return status;
  return gpu;
}

Status Gpu::start() {
  const auto step = [&](int code, const char* function) {
    return code == 0 ? Status{} : no_gpu(std::string(function) + " failed: " + words(driver_, code));
  };
  if (Status s = step(driver_.cuDeviceGet(&device_, 0), "cuDeviceGet"); !s.ok()) return s;
  if (Status s = step(driver_.cuDevicePrimaryCtxRetain(&context_, device_), "cuDevicePrimaryCtxRetain"); !s.ok())
    return s;
  if (Status s = step(driver_.cuCtxSetCurrent(context_), "cuCtxSetCurrent"); !s.ok()) return s;
  if (Status s = step(driver_.cuStreamCreate(&stream_, kNonBlocking), "cuStreamCreate"); !s.ok()) return s;
  return step(driver_.cuEventCreate(&done_, kNoTiming), "cuEventCreate");
}

// What fails here has failed before, or belongs to a driver that is gone.
Gpu::~Gpu() {
  if (context_ == nullptr) return;
  driver_.cuCtxSetCurrent(context_);
  if (done_ != nullptr) driver_.cuEventDestroy_v2(done_);
  if (stream_ != nullptr) driver_.cuStreamDestroy_v2(stream_);
  driver_.cuDevicePrimaryCtxRelease_v2(device_);
}

Gpu::Turn::Turn(Gpu& gpu) : lock_(gpu.mutex_) { gpu.driver_.cuCtxSetCurrent(gpu.context_); }

Status Gpu::checked(int code, const char* function) const {
  if (code == 0) return {};
  return {Code::kInternal, std::string("CUDA: ") + function + " failed: " + words(driver_, code), "the GPU", ""};
}

Status Gpu::wait(const Turn&) {
  if (Status status = checked(driver_.cuEventRecord(done_, stream_), "cuEventRecord"); !status.ok()) return status;
  return checked(driver_.cuEventSynchronize(done_), "cuEventSynchronize");
}

Result<CudaGraphExec> Gpu::capture(const Turn&, const std::function<Status()>& enqueue) {
  CudaGraph graph = nullptr;
  CudaGraphExec made = nullptr;
  if (Status status =
          checked(driver_.cuStreamBeginCapture_v2(stream_, kCaptureThreadLocal), "cuStreamBeginCapture");
      !status.ok())
    return status;
  Status status = enqueue();
  const int ended = driver_.cuStreamEndCapture(stream_, &graph);  // whatever became of it
  if (status.ok()) status = checked(ended, "cuStreamEndCapture");
  if (status.ok()) status = checked(driver_.cuGraphInstantiateWithFlags(&made, graph, 0), "cuGraphInstantiate");
  if (graph != nullptr) driver_.cuGraphDestroy(graph);
  if (!status.ok()) return status;
  return made;
}

Status Gpu::copy(const Turn&, void* to, const void* from, std::size_t bytes) {
  const auto target = reinterpret_cast<DeviceAddress>(to), source = reinterpret_cast<DeviceAddress>(from);
  return checked(driver_.cuMemcpyDtoDAsync_v2(target, source, bytes, stream_), "cuMemcpyDtoDAsync");
}

}  // namespace eecompile
