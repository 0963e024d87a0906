// The runtime: open a bundle, make a session, generate.
//
//   auto bundle = eecompile::Bundle::open("build/demo/bundle");
//   if (!bundle.ok()) return fail(bundle.status());
//   auto session = bundle->session({"exact"});
//   session->generate({1, 450, 7483}, {}, [](const eecompile::Token& t) { return show(t.id); });
//
// Language models in modes full, confident and exact, with the rule catch_up, and gates max_prob, margin, entropy and
// learned; a bundle that needs anything else is refused with kUnsupported. Nothing here throws.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "eecompile/status.h"
#include "eecompile/values.h"

namespace eecompile {

enum class Integrity {
  kHash,  // every core file's SHA-256: reads the whole bundle once
  kSize,  // sizes only; manifest and overlays are checked in full either way
};

// threads: of the process-wide pool (0: the processors at hand). onnxruntime: its shared library, by a path or a name
// that the loader finds. backend: "onnxruntime", "cuda" (ONNX Runtime on a GPU), "tensorrt" (the bundle's engines of
// this machine), or "auto": tensorrt where the bundle has engines and this machine what it takes, else onnxruntime.
// plugin: the exit decision's library, where engines call it, or its folder.
struct OpenOptions {
  int threads = 0;
  Integrity integrity = Integrity::kHash;
  std::string onnxruntime = "libonnxruntime.so.1";
  std::string backend = "auto", plugin;
};

// Generates one sequence at a time. Not thread-safe: sessions of a bundle are, from each other. Cost: the K/V cache of
// one sequence, as far as it was used, and a pass's rows for each step. A session may outlive its Bundle.
class Session {
 public:
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  // Continues `prompt` (token ids). Fails with kUsage for an empty prompt or ids out of range, kContextFull where
  // prompt and new tokens do not fit, kNumeric where the logits are not finite; what `on_token` was given by then
  // stands.
  Result<Generation> generate(const Ids& prompt, const GenerateOptions& options = {}, const OnToken& on_token = {});

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
  std::string tokenizer() const;       // path of its tokenizer.json, or empty

  // kUncalibrated where confident mode has no calibration that allows it, kUsage for limits out of range.
  Result<Session> session(const SessionOptions& options = {}) const;

 private:
  struct State;
  explicit Bundle(std::shared_ptr<const State> state);
  friend struct Session::State;
  std::shared_ptr<const State> state_;
};

}  // namespace eecompile
