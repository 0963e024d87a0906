#include "heap.h"

#include <malloc.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

std::atomic<std::int64_t> blocks{0}, bytes{0}, peak{0}, base{0};
std::atomic<std::int64_t> left{0};  // allocations until one fails; 0: none will
std::atomic<bool> lasts{false}, failed{false};

bool fails() {
  if (left.load(std::memory_order_relaxed) == 0) return false;
  if (lasts && failed) return true;
  if (left.fetch_sub(1) != 1) return false;
  failed = true;
  return true;
}

void* taken(std::size_t size) noexcept {
  if (fails()) return nullptr;
  void* data = std::malloc(size == 0 ? 1 : size);
  if (data == nullptr) return nullptr;
  ++blocks;
  const auto own = static_cast<std::int64_t>(malloc_usable_size(data));
  const std::int64_t now = bytes += own;
  std::int64_t most = peak;
  while (now > most && !peak.compare_exchange_weak(most, now)) {
  }
  return data;
}

void given_back(void* data) noexcept {
  if (data == nullptr) return;
  --blocks;
  bytes -= static_cast<std::int64_t>(malloc_usable_size(data));
  std::free(data);
}

void* demanded(std::size_t size) {
  void* data = taken(size);
  if (data == nullptr) throw std::bad_alloc();
  return data;
}

}  // namespace

void* operator new(std::size_t size) { return demanded(size); }
void* operator new[](std::size_t size) { return demanded(size); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return taken(size); }
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept { return taken(size); }
void operator delete(void* data) noexcept { given_back(data); }
void operator delete[](void* data) noexcept { given_back(data); }
void operator delete(void* data, std::size_t) noexcept { given_back(data); }
void operator delete[](void* data, std::size_t) noexcept { given_back(data); }
void operator delete(void* data, const std::nothrow_t&) noexcept { given_back(data); }
void operator delete[](void* data, const std::nothrow_t&) noexcept { given_back(data); }

namespace eecompile::stress {

std::int64_t live_blocks() { return blocks; }
std::int64_t peak_bytes() { return peak - base; }

void reset_peak() {
  base = bytes.load();
  peak = bytes.load();
}

void starve(std::int64_t number, bool lasting) {
  lasts = lasting;
  failed = false;
  left = number;
}

bool spare() {
  left = 0;
  return failed;
}

}  // namespace eecompile::stress
