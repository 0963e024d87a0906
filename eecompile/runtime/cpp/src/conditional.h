// Decoding one sequence with a launch a step, where the GPU decides at exits (device_step.h); and what fits that
// (runtime/conditional.py).
//
// Tokens, depths and counts are those of the host's decisions: what a graph has decided is taken into account here,
// after it, in the order in which the host would have decided it.
// Thread safety: belongs to one session. Cost: the steps' and the decoder's.
#pragma once

#include <memory>

#include "decode.h"
#include "device_step.h"

namespace eecompile {

// A Decoder of one sequence whose steps are graphs.
//
// What a graph is not for goes as ever: sampled tokens, and the passes that verify drafts at a request's end. A step
// that cannot be captured makes the session go as ever from there on; where `strict` it is an error.
class ConditionalDecoder : public Decoder {
 public:
  ConditionalDecoder(const Manifest& manifest, const LoadedGraphs& graphs, Askers& askers,
                     std::unique_ptr<DeviceSteps> steps, bool strict)
      : Decoder(manifest, graphs, askers, 1, manifest.pending_cap + 1), steps_(std::move(steps)), strict_(strict) {}

  bool on_gpu() const override { return fault_.ok(); }
  Status step(const Those& those) override;
  Status flush(const Those& those) override;

 private:
  bool fits(const Those& those) const;
  Status prepare(const Continuation& one, const StepShape& shape);
  Status come_home();
  Status walk(Continuation& one, const StepShape& shape);
  Status ask(Continuation& one, const ExitRule& rule, std::size_t k, bool& left);

  std::unique_ptr<DeviceSteps> steps_;
  bool strict_, away_ = false;  // away: what waits is in the GPU's boundaries, not in the host's
  Status fault_;                // of a step that could not be captured
};

// Why steps of these settings cannot be graphs that decide; empty where they can.
std::string unfit(const Manifest& manifest, const LoadedGraphs& graphs, const Settings& settings);

// The decoder of a session's requests: the GPU decides where it can. kUsage where `decision` is "conditional" and these
// settings do not fit.
Result<std::unique_ptr<Decoder>> choose_decoder(const Manifest& manifest, const LoadedGraphs& graphs,
                                                const Settings& settings, Staircase& stairs, Askers& askers,
                                                const std::string& decision);

}  // namespace eecompile
