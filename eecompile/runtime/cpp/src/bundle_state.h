// What Bundle and Session hide. Thread safety and cost: theirs.
#pragma once

#include "bundle_files.h"
#include "decode.h"
#include "eecompile/bundle.h"

namespace eecompile {

struct Bundle::State {
  BundleFiles files;
  LoadedGraphs graphs;
  OpenSeconds seconds;
};

struct Session::State {
  State(std::shared_ptr<const Bundle::State> opened, Settings settings)
      : bundle(std::move(opened)),
        decoder(bundle->files.manifest, bundle->graphs, bundle->files.policy, std::move(settings)) {}

  std::shared_ptr<const Bundle::State> bundle;
  Decoder decoder;
};

}  // namespace eecompile
