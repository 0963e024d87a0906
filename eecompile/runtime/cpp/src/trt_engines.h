// TensorRT engines at run time: contexts on shared scratch memory, one stream, a CUDA graph for each pass that repeats
// (engines/trt_runtime.py).
//
// A pass runs first on the context that its engine keeps for the profile. Called again it gets a context of its own,
// since a captured graph is only good for as long as nothing changes the context that it was captured from; there it
// runs once more and is waited for, as TensorRT asks before a capture, and is captured. From then on a call is one
// graph launch and the wait for its event, after which the host reads rows and decisions where the GPU wrote them, in
// pinned memory. What cannot be captured is enqueued each time.
// Thread safety: passes of all threads take turns on the device's stream. Cost: the engines' weights, the largest one's
// scratch memory, and a context for each pass that repeats.
#pragma once

#include <string>

#include "bundle_files.h"
#include "graphs.h"

namespace eecompile {

// What loads the engines of a bundle that this machine runs: those of its own target, else of the first other that
// fits; engines, which the core does not vouch for, are checked as `options` say. kUsage, kMissingBackend, kIntegrity;
// kInternal where the GPU was asked to decide and takes wrong branches.
Result<GraphLoader> open_tensorrt(const BundleFiles& files, const OpenOptions& options);

}  // namespace eecompile
