// What a calibration was measured with (digest.py, gates_digest), in the words of manifest and policy.
//
// Thread safety: a function of its arguments. Cost: the weights are hashed where they lie, and not copied.
#pragma once

#include <string>

#include "json.h"
#include "manifest.h"

namespace eecompile {

// `policy_exits` is the policy's list of exits, read and found to have what the manifest's exits ask for.
std::string gates_digest(const Manifest& m, const Json& policy_exits);

}  // namespace eecompile
