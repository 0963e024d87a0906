// What Bundle and Session hide. Thread safety and cost: theirs.
#pragma once

#include <optional>

#include "bundle_files.h"
#include "decode.h"
#include "eecompile/bundle.h"
#include "sled.h"

namespace eecompile {

struct Bundle::State {
  BundleFiles files;
  LoadedGraphs graphs;
  OpenSeconds seconds;
  std::string decision;  // who decides at exits, as it was asked for

  // The exits' adapters and gates, for the sequences in the `slots` of one pool.
  Askers askers(std::size_t slots) const;
};

// What requests run by that ask for this.
Result<Settings> settings_of(const BundleFiles& files, const SessionOptions& options);

struct Session::State {
  State(std::shared_ptr<const Bundle::State> opened, Settings how)
      : bundle(std::move(opened)),
        settings(std::move(how)),
        askers(bundle->askers(1)),
        pool(bundle->files.manifest, bundle->graphs, 1),
        stairs(pool) {}

  Result<Generation> run(const Ids& prompt, const GenerateOptions& options, const OnToken& on_token);
  Result<std::vector<Outcome>> run_many(const std::vector<Ids>& prompts, const GenerateOptions& options,
                                        const OnBatchToken& on_token, std::size_t slots) const;

  std::shared_ptr<const Bundle::State> bundle;
  Settings settings;
  Askers askers;
  Pool pool;
  Staircase stairs;
  std::unique_ptr<Decoder> decoder;
  std::optional<SledDecoder> sled;
  bool running = false;
};

}  // namespace eecompile
