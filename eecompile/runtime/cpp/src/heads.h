// Asking a head: bound passes over a few rows (heads.py).
//
// Thread safety: belongs to one session; engines are shared. Cost: a pass's rows, and V logits a row once sampling
// asks.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "caches.h"
#include "eecompile/values.h"
#include "engine.h"
#include "graphs.h"
#include "manifest.h"

namespace eecompile {

// The head's answer for N rows: views that its next pass overwrites.
struct Decisions {
  const std::int64_t* token = nullptr;
  const float *max_prob = nullptr, *margin = nullptr;
  const bool* exit_flag = nullptr;
  const float* logits = nullptr;  // [N, width] where they were asked for
  std::int64_t width = 0;
  const Ids* ids = nullptr;  // tokens of the logits' columns; null where they are all tokens in order
};

// A head over up to `rows` rows, with `width` logits.
class Head {
 public:
  Head(SharedEngine engine, const Manifest& manifest, std::int64_t width, std::int64_t rows, Ids ids = {});

  // Decides `n` normalised rows [n, D] against bounds [n, 3] (max_prob and margin above, entropy below); null: none.
  Result<Decisions> decide(const float* rows, std::int64_t n, const float* bounds, bool logits);

 private:
  SharedEngine engine_;
  std::int64_t width_, hidden_width_, minimum_;
  Ids ids_;
  Tensor hidden_, thresholds_, token_, max_prob_, margin_, entropy_, exit_flag_, logits_;
  std::map<std::pair<std::int64_t, bool>, std::unique_ptr<Pass>> bound_;
};

// The model's head, "full", over up to `finished` rows, and the small ones over `asked`, by name.
std::map<std::string, Head> heads_by_name(const Manifest& manifest, const LoadedGraphs& graphs, std::int64_t finished,
                                          std::int64_t asked);

}  // namespace eecompile
