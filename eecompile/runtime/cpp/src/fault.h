// The Status of a bundle that is not intact. Thread safety: functions of their arguments.
#pragma once

#include <exception>
#include <string>
#include <string_view>
#include <utility>

#include "eecompile/status.h"

namespace eecompile {

inline constexpr std::string_view kCopyAgain =
    "copy the bundle again from where it came, or build it again with `eecompile build`";

inline Status damaged(std::string what, std::string where, std::string_view mend = kCopyAgain) {
  return {Code::kIntegrity, std::move(what), std::move(where), std::string(mend)};
}

// The Status of what the standard library threw, which is want of memory or a caller's callback. Never throws itself:
// where memory is short, it says just that.
inline Status thrown(const char* doing, const std::exception& what, std::string_view where = "") noexcept {
  try {
    return {Code::kInternal, std::string(doing) + ": " + what.what(), std::string(where), ""};
  } catch (const std::exception&) {
    return {Code::kInternal, "out of memory", "", ""};  // short enough to need none
  }
}

}  // namespace eecompile
