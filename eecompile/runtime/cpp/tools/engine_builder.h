// From an ONNX file to a serialised engine, through what TensorRT 10.3 to 11 have in common (engines/network.py).
//
// Only a building process calls it: a parser that aborts, or a build that the system kills for memory, then ends
// nothing else. Thread safety: one build a process. Cost: what TensorRT takes.
#pragma once

#include <string>

#include "device_plan.h"
#include "records.h"

namespace eecompile {

// plugin: the exit decision's library, empty for none. timing_cache: a file that builds share.
struct BuildJob {
  GraphPlan graph;
  std::string onnx, out, plugin, timing_cache;
  bool stripped = false, refit = false;
};

// Names of the builder's flags. A stripped plan is refitted with the weights that it was built from, and with these
// alone, which lets the builder use them; one for other weights may not.
std::vector<std::string> builder_flags(bool stripped, bool refit);

// Builds the engine of `job` and writes it.
Result<EngineFile> build_engine(const BuildJob& job);

}  // namespace eecompile
