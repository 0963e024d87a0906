// Memory for an engine's weights in large pages: a token reads all of them once, so that what 4 KiB pages cost is
// translations.
//
// Blocks are cut from regions of address space, one after another, and a region is given back with its last block.
// Pages are touched as weights are written, so what is not used of a region costs nothing. Where the system has no large
// pages to give, the ordinary ones serve.
// Thread safety: all functions. Cost: one lock and one look through the regions, some tens of them for a large model.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>

namespace eecompile {

class WeightsMemory {
 public:
  static constexpr std::size_t kAlignment = 64;              // of blocks: a line of the cache
  static constexpr std::size_t kLargePage = 2 * 1024 * 1024;  // of x86-64, and of arm64 with pages of 4 KiB
  static constexpr std::size_t kRegion = 16 * kLargePage;

  WeightsMemory() = default;
  WeightsMemory(const WeightsMemory&) = delete;
  WeightsMemory& operator=(const WeightsMemory&) = delete;
  ~WeightsMemory();

  // A block of `bytes`, which are zero; null where there is no memory.
  void* take(std::size_t bytes);
  // Gives a block back; false where it is none of these.
  bool give(void* block);
  // The bytes of address space that are held.
  std::size_t held() const;

 private:
  struct Region {
    std::size_t size, used, blocks;
  };
  using Regions = std::map<char*, Region>;

  Regions::iterator region_with(std::size_t bytes);

  mutable std::mutex mutex_;
  Regions regions_;
};

}  // namespace eecompile
