// Memory for what a pass needs while it runs: blocks that are kept for the next one, which asks for the same again.
//
// The heap would do, were it not for passes of many pages: it gives pages back to the system at the end of each, and the
// next has them zeroed again.
// Thread safety: all functions. Cost: one lock; blocks of powers of two, as many as passes ever held at one time.
#pragma once

#include <array>
#include <cstddef>
#include <mutex>

namespace eecompile {

class ScratchMemory {
 public:
  static constexpr std::size_t kAlignment = 64;

  ScratchMemory() = default;
  ScratchMemory(const ScratchMemory&) = delete;
  ScratchMemory& operator=(const ScratchMemory&) = delete;
  ~ScratchMemory();

  // A block of `bytes`; null where there is no memory.
  void* take(std::size_t bytes);
  // Keeps a block of take's for another.
  void give(void* block);

 private:
  struct Header;  // stands before each block

  std::mutex mutex_;
  std::array<Header*, 48> kept_{};  // by the power of two
};

}  // namespace eecompile
