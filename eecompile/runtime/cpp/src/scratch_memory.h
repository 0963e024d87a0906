// Memory for what a pass needs while it runs: blocks that are kept for the next one, which asks for the same again.
//
// The heap would do as well, a few percent slower: it looks for room each time, and gives pages back to the system.
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
