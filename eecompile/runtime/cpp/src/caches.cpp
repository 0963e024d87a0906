#include "caches.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#include "eecompile/contract.h"

namespace eecompile {
namespace {

constexpr std::int64_t kGrowth = 64;  // rows at least, so that bindings, which are made anew, last for as many tokens
constexpr std::size_t kAlignment = 64;

}  // namespace

Tensor::Tensor(std::string dtype, std::vector<std::int64_t> shape)
    : dtype_(std::move(dtype)), shape_(std::move(shape)) {
  bytes_ = element_bytes(dtype_);
  for (const std::int64_t size : shape_)
    if (__builtin_mul_overflow(bytes_, static_cast<std::size_t>(size), &bytes_)) throw std::bad_alloc();
  if (bytes_ > std::numeric_limits<std::size_t>::max() - 2 * kAlignment) throw std::bad_alloc();
  const std::size_t whole = std::max(kAlignment, (bytes_ + kAlignment - 1) / kAlignment * kAlignment);
  data_.reset(static_cast<std::byte*>(std::aligned_alloc(kAlignment, whole)));
  if (!data_) throw std::bad_alloc();
  clear();
}

void Tensor::Free::operator()(std::byte* data) const { std::free(data); }

void Tensor::clear() {
  if (data_) std::memset(data_.get(), 0, bytes_);
}

Buffer Tensor::first(std::int64_t rows) const {
  Buffer part = buffer();
  part.shape[0] = rows;
  return part;
}

Caches::Caches(const std::vector<const GraphInfo*>& graphs, std::int64_t slots)
    : slots_(slots), lengths_(graphs.size()), infos_(graphs.size()), tensors_(graphs.size()) {
  for (std::size_t i = 0; i < graphs.size(); ++i)
    for (const TensorInfo& tensor : graphs[i]->inputs)
      if (tensor.symbol(contract::kLength) >= 0) infos_[i].push_back(&tensor);
}

std::int64_t Caches::rows() const { return lengths_.empty() ? 0 : *std::max_element(lengths_.begin(), lengths_.end()); }

bool Caches::make_room(std::int64_t rows, std::size_t cache) {
  const std::int64_t wanted = rows + 1, have = lengths_[cache];
  if (wanted <= have) return false;
  resize(cache, std::max(wanted, have + std::max(have / 8, kGrowth)));
  return true;
}

bool Caches::shrink(std::int64_t wanted) {
  if (wanted > 0 && rows() <= 2 * (wanted + kGrowth)) return false;
  for (std::size_t cache = 0; cache < lengths_.size(); ++cache) resize(cache, wanted);
  return true;
}

void Caches::resize(std::size_t cache, std::int64_t rows) {
  const std::int64_t length = (rows + contract::kCacheBucket - 1) / contract::kCacheBucket * contract::kCacheBucket;
  const std::int64_t kept = std::min(length, lengths_[cache]);
  std::vector<Tensor> grown;
  for (std::size_t i = 0; i < infos_[cache].size(); ++i) {
    const TensorInfo& info = *infos_[cache][i];
    std::vector<std::int64_t> shape = info.shape;
    for (std::size_t axis = 0; axis < shape.size(); ++axis)
      if (shape[axis] < 0) shape[axis] = info.symbols[axis] == contract::kLength ? length : slots_;
    grown.emplace_back(info.dtype, shape);
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
    const std::size_t slot = tensors_[cache][i].bytes() / static_cast<std::size_t>(slots_);
    some.data = static_cast<std::byte*>(some.data) + static_cast<std::size_t>(first) * slot;
    some.shape[0] = last - first;
    const std::string& name = infos_[cache][i]->name;
    buffers[name] = buffers[name + "_out"] = std::move(some);
  }
}

template <typename Visit>
void Caches::each(Visit visit) const {
  for (std::size_t cache = 0; cache < tensors_.size(); ++cache)
    for (const Tensor& tensor : tensors_[cache]) {
      const auto heads = static_cast<std::size_t>(tensor.shape()[1]), length = static_cast<std::size_t>(lengths_[cache]);
      if (tensor.bytes() == 0) continue;
      const std::size_t of_head = tensor.bytes() / static_cast<std::size_t>(slots_) / heads;
      for (std::size_t head = 0; head < heads; ++head) visit(tensor, head * of_head, heads * of_head, length);
    }
}

void Caches::clear(std::size_t slot, std::int64_t rows) {
  each([&](const Tensor& tensor, std::size_t at, std::size_t of_slot, std::size_t length) {
    const std::size_t row = of_slot / static_cast<std::size_t>(tensor.shape()[1]) / length;
    const std::size_t some = std::min(length, static_cast<std::size_t>(rows));
    std::memset(tensor.data<std::byte>() + slot * of_slot + at, 0, some * row);
  });
}

void Caches::move(std::size_t source, std::size_t target, std::int64_t rows) {
  each([&](const Tensor& tensor, std::size_t at, std::size_t of_slot, std::size_t length) {
    const std::size_t row = of_slot / static_cast<std::size_t>(tensor.shape()[1]) / length;
    const std::size_t some = std::min(length, static_cast<std::size_t>(rows));
    std::memcpy(tensor.data<std::byte>() + target * of_slot + at, tensor.data<std::byte>() + source * of_slot + at,
                some * row);
  });
}

}  // namespace eecompile
