// What the files of the C interface share. Thread safety and cost: eecompile.h.
#pragma once

#include <cstdint>
#include <exception>

#include "eecompile.h"
#include "eecompile/bundle.h"

struct eecompile_bundle {
  eecompile::Bundle bundle;
};

namespace eecompile {

// The code of a fault, whose text becomes the thread's last error; without a Status it is one of usage.
std::int32_t fail(const Status& status) noexcept;
std::int32_t fail(const char* what) noexcept;
std::int32_t out_of_memory() noexcept;

// Runs `work`, which returns a code; nothing it throws gets out.
template <typename Work>
std::int32_t guarded(Work work) noexcept {
  try {
    return work();
  } catch (const std::exception&) {
    return out_of_memory();
  }
}

}  // namespace eecompile
