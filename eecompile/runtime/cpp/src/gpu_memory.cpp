#include "gpu_memory.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace eecompile {
namespace {

constexpr std::size_t kSlab = std::size_t{1} << 20;  // bytes that small blocks are cut from

void must(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.what);
}

DeviceAddress address_of(const void* data) { return reinterpret_cast<DeviceAddress>(data); }

// Of the first `rows` rows of a slot of [slots, KV, T, ..]: where they begin, bytes from head to head, bytes of the
// rows of one head, heads.
struct Part {
  DeviceAddress start;
  std::size_t pitch, width, heads;
};

Part part_of(const Buffer& cache, std::int64_t slot, std::int64_t rows) {
  const auto slots = static_cast<std::size_t>(cache.shape[0]), heads = static_cast<std::size_t>(cache.shape[1]),
             length = static_cast<std::size_t>(cache.shape[2]);
  const std::size_t pitch = cache.bytes() / slots / heads;
  const std::size_t width = pitch / length * std::min(static_cast<std::size_t>(rows), length);
  return {address_of(cache.data) + static_cast<std::size_t>(slot) * heads * pitch, pitch, width, heads};
}

}  // namespace

GpuBlocks::~GpuBlocks() {
  const Gpu::Turn turn(*gpu_);
  for (const auto& [data, size] : allocations_)
    pinned_ ? gpu_->driver().cuMemFreeHost(data) : gpu_->driver().cuMemFree_v2(address_of(data));
}

Block GpuBlocks::take(std::size_t bytes) {
  if (bytes > std::numeric_limits<std::size_t>::max() / 2) throw std::bad_alloc();
  const std::size_t size = std::max<std::size_t>((bytes + kGpuAlignment - 1) / kGpuAlignment, 1) * kGpuAlignment;
  std::byte* data = nullptr;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    Kept& kept = kept_[size];
    if (kept.free.empty()) {
      kept.free.reserve(++kept.made);  // so that nothing is allocated where a block is given back
      kept.free.push_back(cut(size));
    }
    data = kept.free.back();
    kept.free.pop_back();
  }
  return Block(data, [self = shared_from_this(), size](std::byte* given) {
    const std::lock_guard<std::mutex> lock(self->mutex_);
    self->kept_[size].free.push_back(given);
  });
}

bool GpuBlocks::has(const void* data, std::size_t bytes) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto after = allocations_.upper_bound(static_cast<std::byte*>(const_cast<void*>(data)));
  if (after == allocations_.begin()) return false;
  const auto found = std::prev(after);
  return address_of(data) + bytes <= address_of(found->first) + found->second;
}

std::byte* GpuBlocks::cut(std::size_t size) {
  if (size > kSlab) return more(size);
  if (size > left_) {
    next_ = more(kSlab);
    left_ = kSlab;
  }
  std::byte* data = next_;
  next_ += size;
  left_ -= size;
  return data;
}

std::byte* GpuBlocks::more(std::size_t size) {
  const Gpu::Turn turn(*gpu_);
  const CudaDriver& driver = gpu_->driver();
  void* data = nullptr;
  DeviceAddress seen = 0;
  if (pinned_) {
    must(gpu_->checked(driver.cuMemHostAlloc(&data, size, kPinned), "cuMemHostAlloc"));
    must(gpu_->checked(driver.cuMemHostGetDevicePointer_v2(&seen, data, 0), "cuMemHostGetDevicePointer"));
    if (seen != address_of(data))
      throw std::runtime_error("the GPU sees the host's memory at other addresses than the host does");
  } else {
    must(gpu_->checked(driver.cuMemAlloc_v2(&seen, size), "cuMemAlloc"));
    data = reinterpret_cast<void*>(seen);
  }
  allocations_[static_cast<std::byte*>(data)] = size;
  return static_cast<std::byte*>(data);
}

GpuMemory::GpuMemory(std::shared_ptr<Gpu> gpu, std::int64_t length)
    : gpu_(std::move(gpu)),
      length_(length),
      host_(std::make_shared<GpuBlocks>(gpu_, true)),
      own_(std::make_shared<GpuBlocks>(gpu_, false)) {}

Block GpuMemory::rows(std::size_t bytes) {
  Block made = host_->take(bytes);
  std::memset(made.get(), 0, bytes);
  return made;
}

Block GpuMemory::constant(const void* data, std::size_t bytes) {
  Block made = scratch(bytes);
  if (bytes == 0) return made;
  const Gpu::Turn turn(*gpu_);
  const DeviceAddress to = address_of(made.get());
  must(gpu_->checked(gpu_->driver().cuMemcpyHtoDAsync_v2(to, data, bytes, gpu_->stream()), "cuMemcpyHtoDAsync"));
  must(gpu_->wait(turn));  // the source may go away
  return made;
}

Block GpuMemory::cache(std::size_t bytes) {
  Block made = scratch(bytes);
  const Gpu::Turn turn(*gpu_);
  const DeviceAddress to = address_of(made.get());
  if (bytes > 0) must(gpu_->checked(gpu_->driver().cuMemsetD8Async(to, 0, bytes, gpu_->stream()), "cuMemsetD8Async"));
  return made;
}

void GpuMemory::clear(const Buffer& cache, std::int64_t slot, std::int64_t rows) {
  if (cache.bytes() == 0 || rows <= 0) return;
  const Part at = part_of(cache, slot, rows);
  const Gpu::Turn turn(*gpu_);
  const int code = gpu_->driver().cuMemsetD2D8Async(at.start, at.pitch, 0, at.width, at.heads, gpu_->stream());
  must(gpu_->checked(code, "cuMemsetD2D8Async"));
}

void GpuMemory::move(const Buffer& cache, std::int64_t source, std::int64_t target, std::int64_t rows) {
  if (cache.bytes() == 0 || rows <= 0) return;
  const Part from = part_of(cache, source, rows), to = part_of(cache, target, rows);
  Copy2d copy;
  copy.source_type = copy.target_type = kOnDevice;
  copy.source_device = from.start;
  copy.target_device = to.start;
  copy.source_pitch = copy.target_pitch = from.pitch;
  copy.width = from.width;
  copy.height = from.heads;
  const Gpu::Turn turn(*gpu_);
  must(gpu_->checked(gpu_->driver().cuMemcpy2DAsync_v2(&copy, gpu_->stream()), "cuMemcpy2DAsync"));
}

Status GpuMemory::check(const Buffer& buffer, const std::string& name) const {
  const std::size_t bytes = buffer.bytes();
  const bool own = host_->has(buffer.data, bytes) || own_->has(buffer.data, bytes);
  if (own && address_of(buffer.data) % kGpuAlignment == 0) return {};
  const std::string what = own ? " begins at an address that is no multiple of " + std::to_string(kGpuAlignment)
                               : " is not in the memory of the engine that is to read it";
  return {Code::kInternal, name + what, "", ""};
}

}  // namespace eecompile
