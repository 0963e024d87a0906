// When an exit ends a token's way down, for host and device; what a graph's conditional nodes go by.
//
// The rules are the host's (eecompile/runtime/rules.py, gates.py): a cheap gate's value is compared as a double, strictly,
// and NaN or a value that it cannot have lets nothing on to a head.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define EECOMPILE_CONDITION __host__ __device__ inline
#else
#define EECOMPILE_CONDITION inline
#endif

namespace eecompile {

// What became of an exit in a step: the host reads it when the step is done (contract.py).
enum Outcome : std::int32_t {
  kNotReached = 0,  // as the host leaves it
  kRefused = 1,     // the cheap gate let nothing on to the head
  kAsked = 2,       // the head runs, or has run and nobody has looked yet
  kDeclined = 3,    // the head ran, and the token goes on
  kFired = 4,       // the token leaves here
};

// What a cheap gate says: the head is asked where the value is above `above` and at most `most`.
EECOMPILE_CONDITION Outcome asked(float value, double above, double most) {
  return double(value) > above && double(value) <= most ? kAsked : kRefused;
}

// What becomes of an exit once its head may have run.
EECOMPILE_CONDITION Outcome decided(Outcome before, bool flag) {
  if (before != kAsked) return before;
  return flag ? kFired : kDeclined;
}

}  // namespace eecompile
