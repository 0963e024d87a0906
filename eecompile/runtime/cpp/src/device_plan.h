// The build plan of a bundle's device graphs (engines/plan.py): what engines are built of, and what buffers
// they share.
//
// Thread safety: values. Cost: a few times the JSON that they were read from.
#pragma once

#include <array>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "bundle_files.h"

namespace eecompile {

constexpr std::array<std::string_view, 2> kEngineBackends = {"tensorrt", "tensorrt_rtx"};

// The shapes that an input may have in one profile; engines are tuned for `best`.
struct ShapeRange {
  std::vector<std::int64_t> least, best, most;
};

// One optimisation profile, by input.
struct ProfileShapes {
  std::string name;
  std::map<std::string, ShapeRange> shapes;
};

// One engine. path: its ONNX file in the bundle, of that SHA-256. plugin: the exit decision is in it. copied: outputs
// that are copied over inputs after a pass, by the input.
struct GraphPlan {
  std::string name, path, sha256;
  bool plugin = false;
  std::vector<ProfileShapes> profiles;
  std::map<std::string, std::string> copied;
};

// length: rows of every cache. sm, tensorrt, tensorrt_below, cuda: of what the engines are for. plugin: "never",
// "preferred" or "required".
struct BuildPlan {
  std::string target, backend, compute, plugin, tensorrt, tensorrt_below, cuda;
  std::int64_t length = 0;
  std::vector<int> sm;
  std::vector<GraphPlan> graphs;
};

// The bundle's plan. kUsage where it has none, kIntegrity where it is not that of the manifest's device graphs.
Result<BuildPlan> read_plan(const BundleFiles& files);

}  // namespace eecompile
