// read(2) of this program made to give less than it was asked for, to be interrupted and to fail.
//
// Thread safety: any thread may read; one at a time changes the rules. Cost: none that a system call would show.
#pragma once

#include <cstdint>

namespace eecompile::stress {

// At most `most` bytes a read (0: as many as asked for), and every third interrupted first.
void shorten_reads(std::int64_t most);

// The read `number` from now on fails with EIO (0: none).
void fail_read(std::int64_t number);

// Whether it came to that.
bool read_failed();

}  // namespace eecompile::stress
