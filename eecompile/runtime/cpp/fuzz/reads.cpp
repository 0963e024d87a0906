#include "reads.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>

namespace {

std::atomic<std::int64_t> shortest{0}, calls{0}, left{0};
std::atomic<bool> failed{false};

ssize_t refused(int why) {
  errno = why;
  return -1;
}

}  // namespace

extern "C" ssize_t read(int file, void* data, std::size_t size) {
  const std::int64_t most = shortest;
  if (left > 0 && left.fetch_sub(1) == 1) {
    failed = true;
    return refused(EIO);
  }
  if (most > 0 && ++calls % 3 == 0) return refused(EINTR);
  return syscall(SYS_read, file, data, most > 0 ? std::min(size, static_cast<std::size_t>(most)) : size);
}

namespace eecompile::stress {

void shorten_reads(std::int64_t most) { shortest = most; }

void fail_read(std::int64_t number) {
  failed = false;
  left = number;
}

bool read_failed() { return failed; }

}  // namespace eecompile::stress
