// Takes and gives memory at random, on several threads, and holds WeightsMemory and ScratchMemory to what they promise.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "scratch_memory.h"
#include "weights_memory.h"

namespace {

using eecompile::ScratchMemory;
using eecompile::WeightsMemory;

void must(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::_Exit(1);
}

bool all(const char* block, std::size_t size, char value) {
  for (std::size_t i = 0; i < size; ++i)
    if (block[i] != value) return false;
  return true;
}

struct Block {
  char* data;
  std::size_t size;
  char mark;
};

// Blocks keep what is written to them while others come and go. give: gives one back.
template <typename Take, typename Give>
void churn(unsigned seed, std::size_t most, const Take& take, const Give& give) {
  std::mt19937 random(seed);
  std::vector<Block> held;
  for (int i = 0; i < 400; ++i) {
    if (held.size() < 12 && random() % 3 != 0) {
      const std::size_t size = random() % most;
      const Block made{static_cast<char*>(take(size)), size, static_cast<char>(i)};
      must(made.data != nullptr, "a block is given");
      must(reinterpret_cast<std::uintptr_t>(made.data) % 64 == 0, "a block begins with a line of the cache");
      std::memset(made.data, made.mark, made.size);
      held.push_back(made);
    } else if (!held.empty()) {
      std::swap(held[random() % held.size()], held.back());
      must(all(held.back().data, held.back().size, held.back().mark), "a block is its owner's alone");
      give(held.back().data);
      held.pop_back();
    }
  }
  for (const Block& block : held) give(block.data);
}

void weights() {
  WeightsMemory memory;
  int other = 0;
  must(!memory.give(&other), "what is not its own is not taken");
  must(memory.take(SIZE_MAX) == nullptr && memory.take(SIZE_MAX / 4) == nullptr, "too much is refused");
  auto* first = static_cast<char*>(memory.take(1000));
  must(all(first, 1000, 0), "blocks are zero");
  auto* large = static_cast<char*>(memory.take(WeightsMemory::kRegion + 1));
  large[WeightsMemory::kRegion] = 1;
  must(memory.held() == 3 * WeightsMemory::kRegion, "regions are as few as they can be");
  must(memory.give(large) && memory.give(first), "its own are taken");
  must(memory.held() == 0, "a region goes with its last block");
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 4; ++seed)
    threads.emplace_back([&memory, seed] {
      churn(seed, 3 << 20, [&](std::size_t n) { return memory.take(n); },
            [&](void* block) { must(memory.give(block), "its own are taken"); });
    });
  for (std::thread& thread : threads) thread.join();
  must(memory.held() == 0, "nothing is left");
}

void scratch() {
  ScratchMemory memory;
  must(memory.take(SIZE_MAX) == nullptr, "too much is refused");
  void* first = memory.take(300);
  memory.give(first);
  must(memory.take(512) == first, "a block serves again");
  void* second = memory.take(512);
  must(second != first, "but one at a time");
  memory.give(first), memory.give(second);
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 4; ++seed)
    threads.emplace_back([&memory, seed] {
      churn(seed, 1 << 18, [&](std::size_t n) { return memory.take(n); }, [&](void* block) { memory.give(block); });
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main() {
  weights();
  scratch();
  return 0;
}
