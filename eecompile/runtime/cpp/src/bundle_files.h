// Reads a bundle that nobody vouches for: intact in every respect that matters to run it, or refused (read.py).
//
// Thread safety: functions of their arguments and of the disk. Cost: see Integrity.
#pragma once

#include <string>
#include <vector>

#include "eecompile/bundle.h"
#include "manifest.h"
#include "plan.h"

namespace eecompile {

// An intact bundle. `path` is its directory with links resolved.
struct BundleFiles {
  std::string path;
  Manifest manifest;
  Policy policy;
  std::vector<Calibration> calibrations;
  double each_pass = kPassRows;  // rows that cost as much as a pass, by the first profile
  std::vector<std::string> engine_targets;  // whose engines lie in it
};

Result<BundleFiles> read_bundle(const std::string& path, Integrity integrity);

}  // namespace eecompile
