// Which slots share a pass: rectangles of contiguous slots, the cheapest by rows and passes (plan.py).
//
// Thread safety: functions of their arguments. Cost: quadratic in the slots that wait.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "manifest.h"

namespace eecompile {

constexpr double kPassRows = 12;  // rows that cost as much as the pass itself, where nothing was measured

// How many rows' arithmetic costs as much as reading a segment's weights, by a profile (1 to 64).
double pass_rows(const Profile& profile);

using Waiting = std::vector<std::pair<std::int64_t, std::int64_t>>;  // (slot, rows), slots ascending

// Slots from `first` to before `last`, `rows` of each.
struct Range {
  std::int64_t first = 0, last = 0, rows = 0;

  bool operator<(const Range& other) const {
    return first != other.first ? first < other.first : last != other.last ? last < other.last : rows < other.rows;
  }
};

// The cheapest passes that run all of what waits, and their cost in rows.
struct Plan {
  double cost = 0;
  std::vector<Range> ranges;

  bool operator<(const Plan& other) const { return cost != other.cost ? cost < other.cost : ranges < other.ranges; }
};

// each_pass: what a pass costs beside its rows. most: rows that a pass may have, padding included; a single slot's
// always fit.
Plan plan_passes(const Waiting& waiting, double each_pass, std::int64_t most);

// Whether `others`, whose rows wait at this step too, should be run along with `walking`: they save a pass some day, at
// the price of the padding that they cause.
bool riders(const Waiting& walking, const Waiting& others, double each_pass, std::int64_t most);

}  // namespace eecompile
