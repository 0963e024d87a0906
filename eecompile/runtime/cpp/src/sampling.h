// Choosing a token from logits with a seed: a pure function of logits, seed and position (sampling.py says why).
//
// Thread safety: a function of its arguments. Cost: two doubles a logit, and a sort of what top-k leaves.
#pragma once

#include <cstdint>

#include "eecompile/values.h"

namespace eecompile {

// The token for `position` from logits [width]; not for greedy sampling. ids: tokens of the logits, or null.
std::int64_t sample(const float* logits, std::int64_t width, std::int64_t position, const Sampling& how,
                    const Ids* ids);

}  // namespace eecompile
