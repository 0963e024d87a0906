// A double of libcuda that runs on the host, late: memory, and what it says of itself; graphs.cpp has the rest. The
// vendor's header declares what it defines.
#include "doubles.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

struct CUctx_st {};

namespace doubles {
namespace {

struct Allocation {
  bool pinned;
  std::size_t bytes;
};

std::recursive_mutex mutex;
std::map<std::byte*, Allocation> memory;
std::map<std::string, int> counts;
int retained = 0;
CUctx_st context;
thread_local CUcontext current = nullptr;

std::byte* at(CUdeviceptr address) { return reinterpret_cast<std::byte*>(address); }

CUresult allocate(bool pinned, std::size_t bytes, void** data) {
  const Lock lock = locked();
  in_context("memory");
  not_capturing("memory is allocated");
  void* made = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  std::memset(made, 0xFF, bytes);
  memory[static_cast<std::byte*>(made)] = {pinned, bytes};
  *data = made;
  count(pinned ? "pinned" : "device");
  return CUDA_SUCCESS;
}

CUresult release(bool pinned, void* data) {
  const Lock lock = locked();
  not_capturing("memory is freed");
  const auto found = memory.find(static_cast<std::byte*>(data));
  if (found == memory.end() || found->second.pinned != pinned) broken("memory is freed that is not of that kind");
  std::memset(data, 0xFF, found->second.bytes);
  std::free(data);
  memory.erase(found);
  return CUDA_SUCCESS;
}

void report() {
  const std::string path = setting("report", "");
  if (path.empty()) return;
  std::ofstream file(path);
  file << "{\"left\": " << memory.size() + streams_and_graphs() + static_cast<std::size_t>(contexts);
  for (const auto& [name, number] : counts) file << ", \"" << name << "\": " << number;
  file << "}\n";
}

}  // namespace

int contexts = 0;

Lock locked() { return Lock(mutex); }

void in_context(const std::string& what) {
  if (current == nullptr) broken(what + " in a thread without a context");
}

void broken(const std::string& what) {
  std::fprintf(stderr, "RULE BROKEN: %s\n", what.c_str());
  std::abort();
}

std::string setting(const std::string& name, const std::string& otherwise) {
  const char* all = std::getenv("EECOMPILE_DOUBLE");
  std::istringstream parts(all == nullptr ? "" : all);
  for (std::string part; std::getline(parts, part, ',');)
    if (part.rfind(name + "=", 0) == 0) return part.substr(name.size() + 1);
  return otherwise;
}

void count(const std::string& what) {
  const Lock lock = locked();
  ++counts[what];
}

void inside(const void* data, std::size_t bytes, bool pinned_too) {
  const Lock lock = locked();
  const auto* begin = static_cast<const std::byte*>(data);
  for (const auto& [start, allocation] : memory)
    if (start <= begin && begin + bytes <= start + allocation.bytes && (pinned_too || !allocation.pinned)) return;
  broken("bytes that are in no memory of that kind");
}

}  // namespace doubles

using namespace doubles;

CUresult CUDAAPI cuInit(unsigned) { return setting("gpus", "1") == "0" ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS; }
CUresult CUDAAPI cuGetErrorName(CUresult, const char** name) { return *name = "CUDA_ERROR_DOUBLE", CUDA_SUCCESS; }
CUresult CUDAAPI cuGetErrorString(CUresult, const char** text) {
  return *text = "the double was told to fail", CUDA_SUCCESS;
}
CUresult CUDAAPI cuDriverGetVersion(int* version) { return *version = 13020, CUDA_SUCCESS; }
CUresult CUDAAPI cuDeviceGet(CUdevice* device, int) { return *device = 0, CUDA_SUCCESS; }
CUresult CUDAAPI cuDeviceGetName(char* name, int bytes, CUdevice) {
  return std::snprintf(name, static_cast<std::size_t>(bytes), "Double"), CUDA_SUCCESS;
}
CUresult CUDAAPI cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
  const int sm = std::stoi(setting("sm", "87"));
  *value = which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? sm / 10 : sm % 10;
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext* made, CUdevice) {
  ++retained;
  return *made = &context, CUDA_SUCCESS;
}
CUresult CUDAAPI cuDevicePrimaryCtxRelease(CUdevice) {
  if (--retained == 0) report();
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuCtxSetCurrent(CUcontext given) { return current = given, CUDA_SUCCESS; }

CUresult CUDAAPI cuMemAlloc(CUdeviceptr* data, std::size_t bytes) {
  REFUSED("cuMemAlloc");
  void* made = nullptr;
  const CUresult found = allocate(false, bytes, &made);
  *data = reinterpret_cast<CUdeviceptr>(made);
  return found;
}
CUresult CUDAAPI cuMemFree(CUdeviceptr data) { return release(false, at(data)); }
CUresult CUDAAPI cuMemHostAlloc(void** data, std::size_t bytes, unsigned flags) {
  if (!(flags & CU_MEMHOSTALLOC_DEVICEMAP)) broken("host memory that the GPU cannot see");
  return allocate(true, bytes, data);
}
CUresult CUDAAPI cuMemFreeHost(void* data) { return release(true, data); }
CUresult CUDAAPI cuMemHostGetDevicePointer(CUdeviceptr* device, void* data, unsigned) {
  return *device = reinterpret_cast<CUdeviceptr>(data), CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemsetD8Async(CUdeviceptr data, unsigned char value, std::size_t bytes, CUstream stream) {
  inside(at(data), bytes, false);
  add_work(stream, [=] { std::memset(at(data), value, bytes); });
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemsetD2D8Async(CUdeviceptr data, std::size_t pitch, unsigned char value, std::size_t width,
                                   std::size_t height, CUstream stream) {
  inside(at(data), pitch * (height - 1) + width, false);
  count("cuMemsetD2D8Async");
  add_work(stream, [=] {
    for (std::size_t line = 0; line < height; ++line) std::memset(at(data) + line * pitch, value, width);
  });
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, std::size_t bytes, CUstream stream) {
  inside(at(to), bytes, false);
  add_work(stream, [=] { std::memcpy(at(to), from, bytes); }, "memcpy");
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemcpyDtoHAsync(void* to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
  inside(at(from), bytes, false);
  add_work(stream, [=] { std::memcpy(to, at(from), bytes); }, "memcpy");
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
  inside(at(to), bytes, false);
  inside(at(from), bytes, false);
  count("cuMemcpyDtoDAsync");
  add_work(stream, [=] { std::memmove(at(to), at(from), bytes); }, "memcpy");
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemcpy2DAsync(const CUDA_MEMCPY2D* given, CUstream stream) {
  const CUDA_MEMCPY2D c = *given;
  if (c.srcMemoryType != CU_MEMORYTYPE_DEVICE || c.dstMemoryType != CU_MEMORYTYPE_DEVICE) broken("a copy elsewhere");
  inside(at(c.srcDevice), c.srcPitch * (c.Height - 1) + c.WidthInBytes, false);
  inside(at(c.dstDevice), c.dstPitch * (c.Height - 1) + c.WidthInBytes, false);
  add_work(stream, [=] {
    for (std::size_t line = 0; line < c.Height; ++line)
      std::memmove(at(c.dstDevice) + line * c.dstPitch, at(c.srcDevice) + line * c.srcPitch, c.WidthInBytes);
  });
  return CUDA_SUCCESS;
}
