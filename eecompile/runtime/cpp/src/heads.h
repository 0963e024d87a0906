// Asking a head, and an exit's graph: bound passes over a few rows.
//
// Thread safety: belongs to one session; engines are shared. Cost: a pass's rows, and V logits a row once sampling
// asks.
#pragma once

#include <array>
#include <map>
#include <utility>
#include <vector>

#include "caches.h"
#include "eecompile/values.h"
#include "manifest.h"
#include "engine.h"

namespace eecompile {

// The head's answer for N rows: views that its next pass overwrites.
struct Decisions {
  const std::int64_t* token = nullptr;
  const float* max_prob = nullptr;
  const bool* exit_flag = nullptr;
  const float* logits = nullptr;  // [N, width] where they were asked for
  std::int64_t width = 0;
  const Ids* ids = nullptr;  // tokens of the logits' columns; null where they are all tokens in order
};

// A head over up to `rows` rows, with `width` logits.
class Head {
 public:
  Head(SharedEngine engine, const Manifest& manifest, std::int64_t width, std::int64_t rows,
       Ids ids = {});

  // Decides `n` normalised rows [n, D] against bounds (max_prob and margin above, entropy below), the same for all.
  Result<Decisions> decide(const float* rows, std::int64_t n, const std::array<float, 3>& bounds, bool logits);

 private:
  SharedEngine engine_;
  std::int64_t width_, hidden_width_, minimum_;
  Ids ids_;
  Tensor hidden_, thresholds_, token_, max_prob_, margin_, entropy_, exit_flag_, logits_;
  std::map<std::pair<std::int64_t, bool>, std::unique_ptr<Pass>> bound_;
};

// One exit's adapter and learned gate, for one row.
class ExitAsker {
 public:
  ExitAsker(SharedEngine engine, const ExitInfo& info, const ExitPolicy& policy,
            std::int64_t hidden);

  // Asks about one hidden row [D]; `hidden` and `confidence` then hold what the exit says.
  Status ask(const float* row);
  const float* hidden() const { return exit_hidden_.data<float>(); }             // [D], ready for a head
  double confidence() const { return gated_ ? *confidence_.data<float>() : 1; }  // the learned gate's

 private:
  SharedEngine engine_;
  bool gated_;
  std::size_t width_;
  Tensor hidden_, exit_hidden_, confidence_;
  std::array<Tensor, 4> weights_;
  std::unique_ptr<Pass> pass_;
};

}  // namespace eecompile
