#include <exception>

#include "bundle_state.h"
#include "fault.h"
#include "request.h"

namespace eecompile {
namespace {

Status check_sled(const Settings& settings, const Manifest& manifest) {
  if (!settings.full())
    return usage("SLED decodes at full depth, not in mode " + settings.mode, "use mode full");
  if (manifest.exits.empty())
    return usage("SLED needs exits, and the bundle has none", "build it with --exits");
  return {};
}

// Holds while a request runs.
class Running {
 public:
  explicit Running(bool& flag) : flag_(flag) { flag_ = true; }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;
  ~Running() { flag_ = false; }

 private:
  bool& flag_;
};

}  // namespace

// Runs one request, from its prompt to its last token (session.py).
Result<Generation> Session::State::run(const Ids& prompt, const GenerateOptions& options, const OnToken& on_token) {
  const Manifest& m = bundle->files.manifest;
  if (Status status = check_sampling(options.sampling); !status.ok()) return status;
  const bool evolves = options.sampling.sled;
  if (evolves)
    if (Status status = check_sled(settings, m); !status.ok()) return status;
  const Result<std::int64_t> most = room(m, settings, prompt, options.max_new_tokens);
  if (!most.ok()) return most.status();
  if (evolves && !sled) sled.emplace(m, bundle->graphs, askers);
  Request request(m.model, settings, options, prompt, *most);
  Continuation one(stairs, settings, options.sampling);
  stairs.watch(askers, evolves ? Rules(m.exits.size(), ExitRule{}) : settings.rules);
  Clock::time_point began = Clock::now();
  stairs.reset();
  const Result<Ids> first = stairs.pool().take_up(prompt);
  if (!first.ok()) return first.status();
  if (Status status = stairs.prefill(*first); !status.ok()) return status;
  one.last = first->back();
  if (Status status = evolves ? sled->start(one) : decoder->start({&one}); !status.ok()) return status;
  request.stats().prefill_seconds = seconds_since(began);
  while (true) {
    if (Status status = request.take(one, on_token); !status.ok()) return status;
    if (request.done()) return std::move(request.found());
    began = Clock::now();
    if (Status status = evolves ? sled->step(one) : decoder->step({&one}); !status.ok()) return status;
    if (request.wants_flush(one))
      if (Status status = decoder->flush({&one}); !status.ok()) return status;
    request.stats().decode_seconds += seconds_since(began);
  }
}

Session::Session(std::unique_ptr<State> state) : state_(std::move(state)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

std::string Session::decision() const { return state_->decoder->on_gpu() ? "conditional" : "pinned"; }

Result<Generation> Session::generate(const Ids& prompt, const GenerateOptions& options, const OnToken& on_token) {
  try {
    if (state_->running)
      return usage("a callback generates in the session that calls it", "make a session of its own for that");
    const Running now(state_->running);
    return state_->run(prompt, options, on_token);
  } catch (const std::exception& e) {
    return thrown("the request failed", e);
  }
}

Result<std::vector<Outcome>> Session::generate_many(const std::vector<Ids>& prompts, const GenerateOptions& options,
                                                    const OnBatchToken& on_token, std::size_t slots) {
  try {
    return state_->run_many(prompts, options, on_token, slots);
  } catch (const std::exception& e) {
    return thrown("the batch failed", e);
  }
}

}  // namespace eecompile
