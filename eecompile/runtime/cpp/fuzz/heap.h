// Every `new` of this program counted, and made to fail on request.
//
// Thread safety: any thread may allocate; one at a time asks and starves. Cost: two atomic additions an allocation.
#pragma once

#include <cstdint>

namespace eecompile::stress {

std::int64_t live_blocks();
std::int64_t peak_bytes();  // that lived at once, above what did at the last `reset_peak`
void reset_peak();

// The allocation `number` from now on fails (1: the next one), and where it is `lasting` all after it.
void starve(std::int64_t number, bool lasting);

// Ends that; returns whether any allocation failed.
bool spare();

}  // namespace eecompile::stress
