// The Status of a bundle that is not intact. Thread safety: functions of their arguments.
#pragma once

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

}  // namespace eecompile
