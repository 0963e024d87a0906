// A bundle's graphs, loaded. Thread safety: shared by all sessions, which only read it. Cost: the weights.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "branches.h"
#include "caches.h"
#include "cycles.h"
#include "engine.h"
#include "manifest.h"

namespace eecompile {

// heads: the small ones, by name. kv: K/V-only graphs by segment, null where there is none. factors: LoRA by step and
// graph input. cycles: gates that have a step run again, by step. encoder: of an encoder-decoder, else null. branches:
// what captures a whole step (conditional.h); null, with the reason in `unbranched`.
struct LoadedGraphs {
  SharedEngine embed, head, encoder;
  std::vector<SharedEngine> segments, exits, kv;
  std::map<std::string, SharedEngine> heads;
  std::vector<std::map<std::string, Tensor>> factors;
  std::map<std::size_t, CycleGate> cycles;
  std::string backend;  // that they are loaded into
  std::shared_ptr<const Branches> branches;
  std::string unbranched;

  Memory& memory() const { return *embed->memory(); }  // which all of them share
};

// What loads a bundle's graphs into a back end; branches, unbranched: as of LoadedGraphs.
struct GraphLoader {
  LoadEngine load;
  std::shared_ptr<const Branches> branches = nullptr;
  std::string unbranched = "the back end is not tensorrt";
};

// What of LoRA factors and cyclic gates lies in the files of the bundle at `root`.
Status read_factors(const std::string& root, const Manifest& manifest, LoadedGraphs& graphs);

}  // namespace eecompile
