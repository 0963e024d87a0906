// SLED: full depth, with what the exits say on the way turned into a correction of the last layer's logits (sled.py;
// Zhang et al. 2024).
//
// Thread safety: belongs to one session. Cost: a row of logits for each exit and the last layer, in float and double.
#pragma once

#include <vector>

#include "decode.h"

namespace eecompile {

// The evolved logits [V] of the last layer's `final` [V], given those of `exits` [N, V].
std::vector<double> evolve(const float* exits, std::size_t n, const float* final, std::size_t vocab, double rate);

// Steps one sequence in mode full, choosing from evolved logits.
class SledDecoder {
 public:
  SledDecoder(const Manifest& manifest, const LoadedGraphs& graphs, Askers& askers)
      : manifest_(manifest),
        askers_(askers),
        head_(graphs.head, manifest, manifest.model.vocab, static_cast<std::int64_t>(askers.size()) + 1) {}

  Status start(Continuation& one);  // the last token of the prompt takes a step of its own, past every exit
  Status step(Continuation& one);   // embeds the last token, walks down and chooses

 private:
  const Manifest& manifest_;
  Askers& askers_;
  Head head_;
};

}  // namespace eecompile
