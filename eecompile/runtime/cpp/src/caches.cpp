#include "caches.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "eecompile/contract.h"

namespace eecompile {
namespace {

constexpr std::int64_t kGrowth = 64;  // rows at least, so that bindings, which are made anew, last for as many tokens

}  // namespace

Tensor::Tensor(Memory& memory, std::string dtype, std::vector<std::int64_t> shape)
    : dtype_(std::move(dtype)), shape_(std::move(shape)), data_(memory.rows(Buffer{nullptr, dtype_, shape_}.bytes())) {}

Tensor Tensor::cache(Memory& memory, std::string dtype, std::vector<std::int64_t> shape) {
  Tensor made;
  made.dtype_ = std::move(dtype);
  made.shape_ = std::move(shape);
  made.data_ = memory.cache(Buffer{nullptr, made.dtype_, made.shape_}.bytes());
  return made;
}

Tensor Tensor::constant(Memory& memory, std::string dtype, std::vector<std::int64_t> shape, const void* data) {
  Tensor made;
  made.dtype_ = std::move(dtype);
  made.shape_ = std::move(shape);
  made.data_ = memory.constant(data, Buffer{nullptr, made.dtype_, made.shape_}.bytes());
  return made;
}

Buffer Tensor::first(std::int64_t rows) const {
  Buffer part = buffer();
  part.shape[0] = rows;
  return part;
}

Caches::Caches(const std::vector<const GraphInfo*>& graphs, std::shared_ptr<Memory> memory, std::int64_t slots)
    : memory_(std::move(memory)),
      slots_(slots),
      lengths_(graphs.size()),
      infos_(graphs.size()),
      tensors_(graphs.size()) {
  for (std::size_t i = 0; i < graphs.size(); ++i)
    for (const TensorInfo& tensor : graphs[i]->inputs)
      if (tensor.symbol(contract::kLength) >= 0) infos_[i].push_back(&tensor);
}

std::int64_t Caches::rows() const { return lengths_.empty() ? 0 : *std::max_element(lengths_.begin(), lengths_.end()); }

bool Caches::make_room(std::int64_t rows, std::size_t cache) {
  const std::int64_t wanted = rows + 1, have = lengths_[cache];
  if (wanted <= have) return false;
  resize(cache, std::max(wanted, have + std::max(have / 8, kGrowth)));
  if (wanted > lengths_[cache]) throw std::length_error(std::to_string(wanted) + " rows do not fit the caches");
  return true;
}

bool Caches::spacious(std::int64_t wanted) const {
  return grows() && (wanted == 0 || rows() > 2 * (wanted + kGrowth));
}

void Caches::shrink(std::int64_t wanted) {
  for (std::size_t cache = 0; cache < lengths_.size(); ++cache) resize(cache, wanted);
}

void Caches::resize(std::size_t cache, std::int64_t rows) {
  const std::int64_t whole = (rows + contract::kCacheBucket - 1) / contract::kCacheBucket * contract::kCacheBucket,
                     length = grows() ? whole : memory_->length();
  if (!tensors_[cache].empty() && length == lengths_[cache]) return;
  const std::int64_t kept = std::min(length, lengths_[cache]);
  std::vector<Tensor> grown;
  for (std::size_t i = 0; i < infos_[cache].size(); ++i) {
    const TensorInfo& info = *infos_[cache][i];
    std::vector<std::int64_t> shape = info.shape;
    for (std::size_t axis = 0; axis < shape.size(); ++axis)
      if (shape[axis] < 0) shape[axis] = info.symbols[axis] == contract::kLength ? length : slots_;
    grown.push_back(Tensor::cache(*memory_, info.dtype, shape));
    if (kept == 0) continue;
    const Tensor& old = tensors_[cache][i];  // [slots, KV, T, ..]
    const auto heads = static_cast<std::size_t>(shape[0] * shape[1]);
    const std::size_t row = old.bytes() / heads / static_cast<std::size_t>(lengths_[cache]);
    for (std::size_t head = 0; head < heads; ++head)
      std::memcpy(grown.back().data<std::byte>() + head * row * static_cast<std::size_t>(length),
                  old.data<std::byte>() + head * row * static_cast<std::size_t>(lengths_[cache]),
                  row * static_cast<std::size_t>(kept));
  }
  tensors_[cache] = std::move(grown);
  lengths_[cache] = length;
}

void Caches::bind(std::size_t cache, std::int64_t first, std::int64_t last, Buffers& buffers) const {
  for (std::size_t i = 0; i < infos_[cache].size(); ++i) {
    Buffer some = tensors_[cache][i].buffer();
    const std::size_t slot = some.bytes() / static_cast<std::size_t>(slots_);
    some.data = static_cast<std::byte*>(some.data) + static_cast<std::size_t>(first) * slot;
    some.shape[0] = last - first;
    const std::string& name = infos_[cache][i]->name;
    buffers[name] = buffers[name + "_out"] = std::move(some);
  }
}

void Caches::clear(std::size_t slot, std::int64_t rows) {
  for (std::size_t cache = 0; cache < lengths_.size(); ++cache)
    for (const Tensor& tensor : tensors_[cache])
      memory_->clear(tensor.buffer(), static_cast<std::int64_t>(slot), std::min(rows, lengths_[cache]));
}

void Caches::move(std::size_t source, std::size_t target, std::int64_t rows) {
  const auto from = static_cast<std::int64_t>(source), to = static_cast<std::int64_t>(target);
  for (std::size_t cache = 0; cache < lengths_.size(); ++cache)
    for (const Tensor& tensor : tensors_[cache])
      memory_->move(tensor.buffer(), from, to, std::min(rows, lengths_[cache]));
}

}  // namespace eecompile
