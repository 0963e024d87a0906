// A JSON number's value, whatever the process's locale.
#pragma once

#include <string_view>

namespace eecompile::json {

// Of a number of at most 64 characters; infinite where it is beyond a double.
double real_of(std::string_view written);

}  // namespace eecompile::json
