#include "engine.h"

#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

namespace eecompile {
namespace {

constexpr std::size_t kAlignment = 64;

thread_local double seconds_in_passes = 0;
thread_local int running_clocks = 0;

// Of a slot of [slots, KV, T, ..] in the host's memory: its first byte, bytes from head to head, bytes of a row, heads.
struct Slot {
  std::byte* data;
  std::size_t head, row, heads;
};

Slot slot_of(const Buffer& cache, std::int64_t slot) {
  const auto slots = static_cast<std::size_t>(cache.shape[0]), heads = static_cast<std::size_t>(cache.shape[1]);
  const std::size_t head = cache.bytes() / slots / heads, row = head / static_cast<std::size_t>(cache.shape[2]);
  return {static_cast<std::byte*>(cache.data) + static_cast<std::size_t>(slot) * heads * head, head, row, heads};
}

class HostMemory : public Memory {
 public:
  Block rows(std::size_t bytes) override {
    if (bytes > std::numeric_limits<std::size_t>::max() - 2 * kAlignment) throw std::bad_alloc();
    const std::size_t whole = bytes < kAlignment ? kAlignment : (bytes + kAlignment - 1) / kAlignment * kAlignment;
    auto* data = static_cast<std::byte*>(std::aligned_alloc(kAlignment, whole));
    Block made(data, [](std::byte* given) { std::free(given); });
    if (!made) throw std::bad_alloc();
    std::memset(made.get(), 0, bytes);
    return made;
  }

  Block constant(const void* data, std::size_t bytes) override {
    Block made = rows(bytes);
    std::memcpy(made.get(), data, bytes);
    return made;
  }

  Block cache(std::size_t bytes) override { return rows(bytes); }

  void clear(const Buffer& cache, std::int64_t slot, std::int64_t rows) override {
    if (cache.bytes() == 0) return;
    const Slot at = slot_of(cache, slot);
    for (std::size_t head = 0; head < at.heads; ++head)
      std::memset(at.data + head * at.head, 0, at.row * static_cast<std::size_t>(rows));
  }

  void move(const Buffer& cache, std::int64_t source, std::int64_t target, std::int64_t rows) override {
    if (cache.bytes() == 0) return;
    const Slot from = slot_of(cache, source), to = slot_of(cache, target);
    for (std::size_t head = 0; head < from.heads; ++head)
      std::memmove(to.data + head * to.head, from.data + head * from.head, from.row * static_cast<std::size_t>(rows));
  }
};

}  // namespace

std::size_t Buffer::bytes() const {
  std::size_t found = element_bytes(dtype);
  for (const std::int64_t size : shape)
    if (__builtin_mul_overflow(found, static_cast<std::size_t>(size), &found)) throw std::bad_alloc();
  return found;
}

std::size_t element_bytes(std::string_view dtype) {
  return dtype == "float32" ? 4 : dtype == "float16" ? 2 : dtype == "int64" ? 8 : 1;
}

PassClock::PassClock() : began_(Clock::now()) { ++running_clocks; }

PassClock::~PassClock() {
  if (--running_clocks > 0) return;
  seconds_in_passes += seconds_since(began_);
}

double PassClock::seconds() { return seconds_in_passes; }

std::shared_ptr<Memory> host_memory() {
  static const std::shared_ptr<Memory> memory = std::make_shared<HostMemory>();
  return memory;
}

}  // namespace eecompile
