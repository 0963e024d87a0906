#include "source.h"

#include <algorithm>

#include "eecompile/contract.h"

namespace eecompile {

std::int64_t first_tokens(const Manifest& manifest, std::int64_t prompt) { return manifest.source ? 1 : prompt; }

Result<Source> encode_source(const Engine& encoder, const ModelInfo& model, const Ids& ids) {
  const auto count = static_cast<std::int64_t>(ids.size());
  const std::int64_t length = (count + contract::kCacheBucket - 1) / contract::kCacheBucket * contract::kCacheBucket;
  Memory& memory = *encoder.memory();
  Source source;
  const Tensor padded(memory, "int64", {1, length}), counted(memory, "int64", {1});
  std::copy(ids.begin(), ids.end(), padded.data<std::int64_t>());
  *counted.data<std::int64_t>() = count;
  source.buffers[std::string(contract::kSourceLength)] = counted.buffer();
  source.held.push_back(counted);
  for (const TensorInfo& info : encoder.info().outputs) {
    source.held.push_back(Tensor::cache(memory, info.dtype, {1, model.heads, length, model.head_dim}));
    source.buffers[info.name] = source.held.back().buffer();
  }
  Buffers buffers = source.buffers;
  buffers[std::string(contract::kTokenIds)] = padded.buffer();
  const Result<std::unique_ptr<Pass>> pass = encoder.bind(buffers);
  if (!pass.ok()) return pass.status();
  if (Status status = (*pass)->run(); !status.ok()) return status;
  return source;
}

}  // namespace eecompile
