// The clock that seconds are measured with. Thread safety: functions. Cost: a reading of the clock.
#pragma once

#include <chrono>

namespace eecompile {

using Clock = std::chrono::steady_clock;

inline double seconds_between(Clock::time_point began, Clock::time_point ended) {
  return std::chrono::duration<double>(ended - began).count();
}

inline double seconds_since(Clock::time_point began) { return seconds_between(began, Clock::now()); }

}  // namespace eecompile
