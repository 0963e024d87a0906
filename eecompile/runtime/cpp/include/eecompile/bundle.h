// The runtime: open a bundle, make a session, generate.
//
//   auto bundle = eecompile::Bundle::open("build/demo/bundle");
//   if (!bundle.ok()) return fail(bundle.status());
//   auto session = bundle->session({"exact"});
//   session->generate({1, 450, 7483}, {}, [](const eecompile::Token& t) { return show(t.id); });
//
// Language models in every mode, with every K/V rule, criterion, head and schedule, one at a time or side
// by side, encoder-decoders among them (the prompt is the source); encoders as classifiers. Nothing here throws.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "eecompile/batch.h"
#include "eecompile/classifier.h"
#include "eecompile/status.h"
#include "eecompile/values.h"

namespace eecompile {

enum class Integrity {
  kHash,  // every core file's SHA-256: reads the whole bundle once
  kSize,  // sizes only; manifest and overlays are checked in full either way
};

// threads: of the process-wide pool (0: the processors at hand). onnxruntime: its shared library, by a path or a name
// that the loader finds. The first bundle that a process opens decides both: later another number of threads is refused,
// and another library not looked at. An application that uses ONNX Runtime itself opens its first bundle before that, or
// makes its environment with CreateEnvWithGlobalThreadPools.
// backend: "onnxruntime", "cuda" (ONNX Runtime on a GPU), "tensorrt" (the bundle's engines of this machine), or "auto":
// tensorrt where the bundle has engines and this machine what it takes, else onnxruntime.
// plugin: the exit decision's library, where engines call it, or its folder. decision: who decides at exits of engines:
// "pinned", the host, by what it reads after each pass; "conditional", the GPU, a token's way down being one launch, for
// which the plugin's library is needed; "auto": the GPU where it can.
struct OpenOptions {
  int threads = 0;
  Integrity integrity = Integrity::kHash;
  std::string onnxruntime = "libonnxruntime.so.1";
  std::string backend = "auto", plugin, decision = "auto";
};

// Generates one sequence at a time, or many side by side. Not thread-safe: sessions of a bundle are, from each other.
// Cost: the K/V cache of one sequence, as far as it was used, and a pass's rows for each step. A session may outlive
// its Bundle.
class Session {
 public:
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  // Continues `prompt` (token ids). Fails with kUsage for an empty prompt or ids out of range, kContextFull where
  // prompt and new tokens do not fit, kNumeric where the logits are not finite; what `on_token` was given by then
  // stands. `on_token` may use other sessions, and this one not.
  Result<Generation> generate(const Ids& prompt, const GenerateOptions& options = {}, const OnToken& on_token = {});

  std::string decision() const;  // who decides at exits: "conditional", the GPU, or "pinned", the host

  // Continues every prompt, up to `slots` of them at once (0: as many as the bundle has slots for, at most 8), in order
  // as slots fall free; each gives what it would give alone. A prompt that cannot be served and a sequence that fails
  // have their own status, and the others go on. Cost: in each slot the K/V cache of the longest, while it runs.
  Result<std::vector<Outcome>> generate_many(const std::vector<Ids>& prompts, const GenerateOptions& options = {},
                                             const OnBatchToken& on_token = {}, std::size_t slots = 0);

 private:
  friend class Bundle;
  struct State;
  explicit Session(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// A checked bundle with its graphs loaded. Thread-safe, and cheap to copy. Cost: the weights, once for all sessions.
class Bundle {
 public:
  // Checks and loads the bundle at `path`. Signatures are not looked at.
  static Result<Bundle> open(const std::string& path, const OpenOptions& options = {});

  const ModelInfo& model() const;
  std::vector<ExitDescription> exits() const;
  const std::string& backend() const;  // that runs it
  std::string gpu() const;             // the GPU's name, empty on the processor
  const std::string& task() const;          // causal-lm, or what a classifier does
  std::vector<std::string> labels() const;  // of a classifier; none: the bundle generates text
  std::string tokenizer() const;            // path of its tokenizer.json, or empty
  OpenSeconds open_seconds() const;

  // kUncalibrated where confident mode has no calibration that allows it, kUsage for limits out of range, and where the
  // GPU was asked to decide what it cannot.
  Result<Session> session(const SessionOptions& options = {}) const;

  // A batch of up to `slots` requests that run side by side (0: as many as the bundle has slots for, at most 8). Fails
  // likewise.
  Result<Batch> batch(const SessionOptions& options = {}, std::size_t slots = 0) const;

  // For bundles of encoders; likewise.
  Result<Classifier> classifier(const ClassifierOptions& options = {}) const;

 private:
  struct State;
  explicit Bundle(std::shared_ptr<const State> state);
  friend class Batch;
  friend struct Session::State;
  friend struct Classifier::State;
  std::shared_ptr<const State> state_;
};

// What the calling thread has spent inside of engines by now, in all its requests.
double engine_seconds();

}  // namespace eecompile
