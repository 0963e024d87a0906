// A bundle's directory disturbed in one place, and put right again.
//
// Thread safety: one process at a time has the directory. Cost: a few system calls.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "documents.h"

namespace eecompile::stress {

// Removes, cuts, prolongs or replaces one of `names` under `root`, or adds something that does not belong there.
// Returns what undoes it. What is taken away waits in `aside`, outside of the bundle.
std::function<void()> disturb(const std::string& root, const std::vector<std::string>& names, const std::string& aside,
                              Random& random);

}  // namespace eecompile::stress
