// Tensors that this library owns, and the K/V caches of a pool of slots: zero-initialised, updated in place, no longer
// than they need to be (caches.py says why they grow, and why by multiples of the bucket).
//
// Thread safety: belongs to one session or batch. Cost: for each slot and each token of the longest sequence
// 2 x layers x KV x d numbers, and an eighth more.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "engine.h"

namespace eecompile {

// A contiguous tensor of zeros: rows of a memory, by default the process's own. Throws what Memory throws.
class Tensor {
 public:
  Tensor() = default;
  Tensor(std::string dtype, std::vector<std::int64_t> shape) : Tensor(*host_memory(), dtype, std::move(shape)) {}
  Tensor(Memory& memory, std::string dtype, std::vector<std::int64_t> shape);

  // One that passes alone read and write.
  static Tensor cache(Memory& memory, std::string dtype, std::vector<std::int64_t> shape);

  // One that passes alone read: a copy of the numbers at `data`.
  static Tensor constant(Memory& memory, std::string dtype, std::vector<std::int64_t> shape, const void* data);

  template <typename T>
  T* data() const {
    return static_cast<T*>(static_cast<void*>(data_.get()));
  }
  std::size_t bytes() const { return data_ ? buffer().bytes() : 0; }
  const std::vector<std::int64_t>& shape() const { return shape_; }
  const std::string& dtype() const { return dtype_; }

  // The tensor, or its first `rows` along the first axis, as a buffer.
  Buffer buffer() const { return {data_.get(), dtype_, shape_}; }
  Buffer first(std::int64_t rows) const;

 private:
  std::string dtype_;
  std::vector<std::int64_t> shape_;
  Block data_;
};

class Caches {
 public:
  // graphs: for each cache the graph that writes it, whose inputs say what the tensors are: those with a length T.
  // memory: of the engines that write them; one with a length of its own has every cache that long from the start,
  // since a captured graph of GPU work needs addresses that never change.
  Caches(const std::vector<const GraphInfo*>& graphs, std::shared_ptr<Memory> memory, std::int64_t slots = 1);

  std::int64_t rows() const;  // the longest cache's length
  bool grows() const { return memory_->length() == 0; }

  // Has room in one cache for `rows` rows and the one of padding that fused attention writes behind them. Returns
  // whether its tensors were replaced, so that bindings to them are stale.
  bool make_room(std::int64_t rows, std::size_t cache);

  // Whether there is much that no sequence of `rows` tokens is long enough for, and caches grow; gives that back (0: all
  // of it), so that bindings are stale.
  bool spacious(std::int64_t rows) const;
  void shrink(std::int64_t rows);

  // Adds the tensors of one cache for the slots from `first` to before `last`, inputs and outputs alike.
  void bind(std::size_t cache, std::int64_t first, std::int64_t last, Buffers& buffers) const;

  void clear(std::size_t slot, std::int64_t rows);  // zeros a slot's first rows: what is not finite cannot be masked
  void move(std::size_t source, std::size_t target, std::int64_t rows);  // copies a slot's first rows over another's

 private:
  void resize(std::size_t cache, std::int64_t rows);

  std::shared_ptr<Memory> memory_;
  std::int64_t slots_;
  std::vector<std::int64_t> lengths_;
  std::vector<std::vector<const TensorInfo*>> infos_;
  std::vector<std::vector<Tensor>> tensors_;  // [slots, KV, T, ..]
};

}  // namespace eecompile
