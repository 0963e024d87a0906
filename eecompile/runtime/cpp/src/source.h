// Prompts of an encoder-decoder are sources: encoded once a request, into what every decoder layer attends to
// (source.py).
//
// Thread safety: functions of their arguments; engines are shared. Cost: 2 L H E d numbers, E tokens of source padded.
#pragma once

#include <vector>

#include "caches.h"
#include "graphs.h"
#include "manifest.h"

namespace eecompile {

// What segments take besides, by name: keys and values [1, H, E, d] of each layer's cross-attention, and source_length
// [1]. `held` owns them.
struct Source {
  std::vector<Tensor> held;
  Buffers buffers;
};

// How many tokens go through the decoder before the first new one, for `prompt` tokens of prompt.
std::int64_t first_tokens(const Manifest& manifest, std::int64_t prompt);

// Runs the encoder over `ids`, padded to a multiple of the bucket, so that no product has a single row.
Result<Source> encode_source(const Engine& encoder, const ModelInfo& model, const Ids& ids);

}  // namespace eecompile
