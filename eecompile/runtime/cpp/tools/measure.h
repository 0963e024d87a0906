// Measures a bundle: the modes in turns, so that what a machine does beside it falls on all of them.
#pragma once

#include <string>
#include <vector>

#include "eecompile/bundle.h"

namespace eecompile {

// What is measured: `tokens` after `prompt` in each of `modes`, `rounds` times after one that does not count.
struct MeasureOptions {
  std::vector<std::string> modes;  // empty: those that the bundle runs
  Ids prompt;
  std::int64_t tokens = 64, rounds = 5;
};

// One mode; each list has a value a round. `outside`: the share of decoding that is not inside of engines.
struct Measured {
  std::string mode;
  std::vector<double> tokens_per_second, prefill_seconds, outside;
  double mean_depth = 0;
  std::int64_t tokens = 0;
};

struct Measurements {
  double session_seconds = 0, first_token_seconds = 0;  // of the first session, in full mode, and of its first token
  std::vector<Measured> modes;
};

double median(std::vector<double> values);

// kUsage for options that mean nothing; else what sessions and requests say. A mode that was not asked for and has no
// calibration is left out.
Result<Measurements> measure(const Bundle& bundle, const MeasureOptions& options);

}  // namespace eecompile
