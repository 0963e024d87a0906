// Loading a bundle's graphs into a back end (backends.py).
//
// Thread safety: functions of their arguments and of the disk. Cost: the weights of every graph.
#pragma once

#include "bundle_files.h"
#include "graphs.h"

namespace eecompile {

// Loads what a language model's passes run. kMissingBackend, kIntegrity; kUsage where the bundle has nothing for the
// back end that `options` ask for.
Result<LoadedGraphs> load_graphs(const BundleFiles& files, const OpenOptions& options);

}  // namespace eecompile
