// The exit decision's arithmetic over one row of logits, for host and device.
//
// It is that of the model-local ONNX function ExitDecision (eecompile/segments/decision.py), in one pass:
//
//   token     the arg-max, the lowest of equals. A NaN never is; 0 where no logit is above -inf
//   max_prob  first probability; margin: first minus second; entropy: in nats, not normalised
//   NaN       anywhere, or +inf, or nothing above -inf: all three values are NaN
//   -inf      beside finite logits (or two logits whose difference overflows): the entropy is NaN
//   V = 1     the second probability is 0. (The ONNX function has no answer there: its TopK wants two.)
//
// Comparisons are strict and a NaN fails each of them, so that no row of the three middle lines opens an exit.
#pragma once

#include <cmath>
#include <limits>

#ifdef __CUDACC__
#define EECOMPILE_BOTH __host__ __device__ inline
#else
#define EECOMPILE_BOTH inline
#endif

namespace eecompile {

// Arguments are at most 0 or NaN. On a device a subnormal result is 0 and the error about 2 ulp.
EECOMPILE_BOTH float exponential(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
  return y;
#else
  return std::exp(x);
#endif
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kVanishes = -200;  // exp of it is 0, and times any sum of ours it is finite
constexpr int kNone = std::numeric_limits<int>::max();

struct Decision {
  int token;
  float max_prob, margin, entropy;

  // bounds [3]: max_prob above, margin above, entropy below; all of them have to hold (contract.py, THRESHOLDS).
  EECOMPILE_BOTH bool opens(const float* bounds) const {
    return max_prob > bounds[0] && margin > bounds[1] && entropy < bounds[2];
  }
};

// What is known of some of a row's logits. `add` takes them in ascending order, `merge` in any. `merge` is commutative; it is associative in all but the rounding of the two
// sums, so that a fixed tree of merges gives the same bits every time.
struct Reduction {
  float max, second, low;  // largest, second largest (as often as it occurs) and smallest; a NaN is not compared
  int index;               // of `max`; kNone where that is -inf
  float sum, moment;       // of exp(d) and exp(d) * d with d = logit - max; NaN if a logit is

  EECOMPILE_BOTH static Reduction empty() { return {-kInfinity, -kInfinity, kInfinity, kNone, 0, 0}; }

  EECOMPILE_BOTH void add(float value, int at) {
    const float values[1] = {value};
    add(values, at);
  }

  // Neighbours, at `first` and on: one change of scale for all of them.
  template <int N>
  EECOMPILE_BOTH void add(const float (&values)[N], int first) {
    Reduction found = *this;
    for (int i = 0; i < N; ++i) found.consider(values[i], first + i);
    rescale(found.max);
    found.sum = sum, found.moment = moment;
    const float base = found.max > -kInfinity ? found.max : 0;
    for (int i = 0; i < N; ++i) {
      const float d = values[i] - base, weight = exponential(d);
      found.sum += weight;
      found.moment += weight * d;
    }
    *this = found;
  }

  EECOMPILE_BOTH void merge(Reduction other) {
    const float top = fmaxf(max, other.max);
    second = fmaxf(fminf(max, other.max), fmaxf(second, other.second));
    const bool here = max == top, there = other.max == top;
    index = !there || (here && index < other.index) ? index : other.index;
    low = fminf(low, other.low);
    rescale(top);
    other.rescale(top);
    sum += other.sum;
    moment += other.moment;
  }

  // Make `top`, which is no less than `max`, what the sums are relative to.
  EECOMPILE_BOTH void rescale(float top) {
    if (max > -kInfinity && max < top) {  // otherwise the sums are 0 or NaN, or in scale
      const float d = fmaxf(max - top, kVanishes), weight = exponential(d);
      moment = weight * (moment + d * sum);
      sum *= weight;
    }
    max = top;
  }

  EECOMPILE_BOTH Decision finish() const {
    if (!(max > -kInfinity)) return {0, kNan, kNan, kNan};
    const float first = 1 / sum;
    const bool spans = low - max > -kInfinity;
    return {index, first, first - exponential(second - max) / sum, spans ? logf(sum) - moment / sum : kNan};
  }

 private:
  EECOMPILE_BOTH void consider(float value, int at) {
    const bool above = value > max;
    second = fmaxf(second, fminf(value, max));
    index = above ? at : index;
    max = above ? value : max;
    low = fminf(low, value);
  }
};

}  // namespace eecompile
