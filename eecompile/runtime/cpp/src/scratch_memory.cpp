#include "scratch_memory.h"

#include <cstdlib>
#include <new>

namespace eecompile {

struct alignas(ScratchMemory::kAlignment) ScratchMemory::Header {
  Header* next;
  std::size_t power;
};

ScratchMemory::~ScratchMemory() {
  for (Header* first : kept_)
    while (first != nullptr) {
      Header* const next = first->next;
      std::free(first);
      first = next;
    }
}

void* ScratchMemory::take(std::size_t bytes) {
  std::size_t power = 8;
  while (power < kept_.size() && (std::size_t{1} << power) < bytes) ++power;
  if (power == kept_.size()) return nullptr;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (Header* const found = kept_[power]) {
      kept_[power] = found->next;
      return found + 1;
    }
  }
  void* made = nullptr;
  if (posix_memalign(&made, kAlignment, sizeof(Header) + (std::size_t{1} << power)) != 0) return nullptr;
  return new (made) Header{nullptr, power} + 1;
}

void ScratchMemory::give(void* block) {
  Header* const header = static_cast<Header*>(block) - 1;
  const std::lock_guard<std::mutex> lock(mutex_);
  header->next = kept_[header->power];
  kept_[header->power] = header;
}

}  // namespace eecompile
