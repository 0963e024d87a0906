// A double of libcuda that runs on the host, late. The vendor's header declares what it defines.
#include "doubles.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <mutex>
#include <sstream>
#include <thread>
#include <vector>

using Work = std::function<void()>;

struct CUctx_st {};
struct CUgraph_st {
  std::vector<Work> work;
};
struct CUgraphExec_st {
  std::vector<Work> work;
};
struct CUstream_st {
  std::vector<Work> queue;
  std::unique_ptr<CUgraph_st> graph;
  std::thread::id thread;
};
struct CUevent_st {
  CUstream stream = nullptr;
  std::size_t work = 0;
};

namespace doubles {
namespace {

struct Allocation {
  bool pinned;
  std::size_t bytes;
};

std::recursive_mutex mutex;
std::map<std::byte*, Allocation> memory;
std::map<CUstream, int> streams;
std::map<std::string, int> counts;
int graphs = 0, retained = 0;
CUctx_st context;
thread_local CUcontext current = nullptr;

using Lock = std::lock_guard<std::recursive_mutex>;

CUstream_st& stream_of(CUstream stream) {
  if (current == nullptr) broken("a call in a thread without a context");
  if (streams.count(stream) == 0) broken("no stream that was made: the default stream, or one that is gone");
  return *stream;
}

std::byte* at(CUdeviceptr address) { return reinterpret_cast<std::byte*>(address); }

CUresult allocate(bool pinned, std::size_t bytes, void** data) {
  const Lock lock(mutex);
  if (current == nullptr) broken("memory without a context");
  not_capturing("memory is allocated");
  void* made = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  std::memset(made, 0xFF, bytes);
  memory[static_cast<std::byte*>(made)] = {pinned, bytes};
  *data = made;
  count(pinned ? "pinned" : "device");
  return CUDA_SUCCESS;
}

CUresult release(bool pinned, void* data) {
  const Lock lock(mutex);
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
  file << "{\"left\": " << memory.size() + streams.size() + static_cast<std::size_t>(graphs + contexts);
  for (const auto& [name, number] : counts) file << ", \"" << name << "\": " << number;
  file << "}\n";
}

}  // namespace

int contexts = 0;

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
  const Lock lock(mutex);
  ++counts[what];
}

bool captured(CUstream stream) { return stream_of(stream).graph != nullptr; }

void not_capturing(const std::string& what) {
  const Lock lock(mutex);
  for (const auto& [stream, one] : streams)
    if (stream->graph && stream->thread == std::this_thread::get_id()) broken(what + " during a capture");
}

void inside(const void* data, std::size_t bytes, bool pinned_too) {
  const Lock lock(mutex);
  const auto* begin = static_cast<const std::byte*>(data);
  for (const auto& [start, allocation] : memory)
    if (start <= begin && begin + bytes <= start + allocation.bytes && (pinned_too || !allocation.pinned)) return;
  broken("bytes that are in no memory of that kind");
}

void add_work(CUstream stream, Work work) {
  const Lock lock(mutex);
  CUstream_st& found = stream_of(stream);
  if (found.graph && found.thread != std::this_thread::get_id()) broken("another thread's work slips into a capture");
  (found.graph ? found.graph->work : found.queue).push_back(std::move(work));
}

}  // namespace doubles

using namespace doubles;

#define REFUSED(function)                                                  \
  if (setting("refuse", "") == function) return CUDA_ERROR_UNKNOWN;        \
  count(function)

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

CUresult CUDAAPI cuStreamCreate(CUstream* stream, unsigned flags) {
  const Lock lock(doubles::mutex);
  if (flags != CU_STREAM_NON_BLOCKING) broken("a stream that waits for the default stream");
  ++streams[*stream = new CUstream_st()];
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuStreamDestroy(CUstream stream) {
  const Lock lock(doubles::mutex);
  streams.erase(stream);
  delete stream;
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuEventCreate(CUevent* event, unsigned flags) {
  if (flags != CU_EVENT_DISABLE_TIMING) broken("an event that takes times");
  return *event = new CUevent_st(), CUDA_SUCCESS;
}
CUresult CUDAAPI cuEventDestroy(CUevent event) { return delete event, CUDA_SUCCESS; }
CUresult CUDAAPI cuEventRecord(CUevent event, CUstream stream) {
  const Lock lock(doubles::mutex);
  not_capturing("an event is recorded");
  *event = {stream, stream_of(stream).queue.size()};
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuEventSynchronize(CUevent event) {
  const Lock lock(doubles::mutex);
  not_capturing("somebody waits");
  std::vector<Work>& queue = stream_of(event->stream).queue;
  for (; event->work > 0; --event->work) {
    queue.front()();
    queue.erase(queue.begin());
  }
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
  const Lock lock(doubles::mutex);
  REFUSED("cuStreamBeginCapture");
  CUstream_st& found = stream_of(stream);
  if (mode != CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) broken("a capture that forbids other threads to allocate");
  if (found.graph) broken("a capture inside a capture");
  if (!found.queue.empty()) broken("a capture begins before the run before it was waited for");
  found.graph = std::make_unique<CUgraph_st>();
  found.thread = std::this_thread::get_id();
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuStreamEndCapture(CUstream stream, CUgraph* graph) {
  const Lock lock(doubles::mutex);
  CUstream_st& found = stream_of(stream);
  if (!found.graph || found.thread != std::this_thread::get_id()) broken("the end of a capture of another thread's");
  *graph = found.graph.release();
  ++graphs;
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuGraphInstantiateWithFlags(CUgraphExec* made, CUgraph graph, unsigned long long) {
  *made = new CUgraphExec_st{graph->work};
  ++graphs;
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuGraphLaunch(CUgraphExec graph, CUstream stream) {
  REFUSED("cuGraphLaunch");
  for (const Work& work : graph->work) add_work(stream, work);
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuGraphDestroy(CUgraph graph) {
  --graphs;
  return delete graph, CUDA_SUCCESS;
}
CUresult CUDAAPI cuGraphExecDestroy(CUgraphExec graph) {
  --graphs;
  return delete graph, CUDA_SUCCESS;
}

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
  add_work(stream, [=] { std::memcpy(at(to), from, bytes); });
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemcpyDtoHAsync(void* to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
  inside(at(from), bytes, false);
  add_work(stream, [=] { std::memcpy(to, at(from), bytes); });
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
  inside(at(to), bytes, false);
  inside(at(from), bytes, false);
  count("cuMemcpyDtoDAsync");
  add_work(stream, [=] { std::memmove(at(to), at(from), bytes); });
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
