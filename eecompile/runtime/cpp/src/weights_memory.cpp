#include "weights_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <iterator>
#include <limits>
#include <new>

namespace eecompile {
namespace {

std::size_t rounded(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

// `bytes` of address space that begin with a large page; null where there are none.
char* map_region(std::size_t bytes) {
  const std::size_t wide = bytes + WeightsMemory::kLargePage;
  void* found = mmap(nullptr, wide, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) return nullptr;
  char* const first = static_cast<char*>(found);
  const std::size_t skip = rounded(reinterpret_cast<std::uintptr_t>(first), WeightsMemory::kLargePage) -
                           reinterpret_cast<std::uintptr_t>(first);
  if (skip > 0) munmap(first, skip);
  if (skip < WeightsMemory::kLargePage) munmap(first + skip + bytes, WeightsMemory::kLargePage - skip);
  madvise(first + skip, bytes, MADV_HUGEPAGE);  // a wish: a system that knows no large pages refuses it
  return first + skip;
}

}  // namespace

WeightsMemory::~WeightsMemory() {
  for (const auto& [first, region] : regions_) munmap(first, region.size);
}

WeightsMemory::Regions::iterator WeightsMemory::region_with(std::size_t bytes) {
  for (auto region = regions_.begin(); region != regions_.end(); ++region)
    if (region->second.size - region->second.used >= bytes) return region;
  const std::size_t size = rounded(bytes, kRegion);
  char* const first = map_region(size);
  if (first == nullptr) return regions_.end();
  try {
    return regions_.emplace(first, Region{size, 0, 0}).first;
  } catch (const std::bad_alloc&) {
    munmap(first, size);
    return regions_.end();
  }
}

void* WeightsMemory::take(std::size_t bytes) {
  if (bytes > std::numeric_limits<std::size_t>::max() / 2) return nullptr;
  const std::size_t size = rounded(bytes == 0 ? 1 : bytes, kAlignment);
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = region_with(size);
  if (found == regions_.end()) return nullptr;
  auto& [first, region] = *found;
  char* const block = first + region.used;
  region.used += size;
  ++region.blocks;
  return block;
}

bool WeightsMemory::give(void* block) {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto found = regions_.upper_bound(static_cast<char*>(block));
  if (found == regions_.begin()) return false;
  found = std::prev(found);
  if (static_cast<char*>(block) >= found->first + found->second.size) return false;
  if (--found->second.blocks > 0) return true;
  munmap(found->first, found->second.size);
  regions_.erase(found);
  return true;
}

std::size_t WeightsMemory::held() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::size_t bytes = 0;
  for (const auto& [first, region] : regions_) bytes += region.size;
  return bytes;
}

}  // namespace eecompile
