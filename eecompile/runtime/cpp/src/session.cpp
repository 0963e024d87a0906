#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>

#include "bundle_state.h"

namespace eecompile {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point began) { return std::chrono::duration<double>(Clock::now() - began).count(); }

Status usage(std::string what, std::string where, std::string mend, Code code = Code::kUsage) {
  return {code, std::move(what), std::move(where), std::move(mend)};
}

Status check_sampling(const Sampling& how) {
  if (!(how.temperature >= 0 && std::isfinite(how.temperature)))
    return usage("the temperature is not a number from 0 up", "", "");
  if (how.top_k < 0) return usage("top_k " + std::to_string(how.top_k) + " is negative", "", "0 keeps every token");
  if (!(how.top_p > 0 && how.top_p <= 1)) return usage("top_p is not above 0 and at most 1", "", "");
  return {};
}

// How many tokens to generate; fails where the request cannot be served (request.py, room).
Result<std::int64_t> room(const ModelInfo& model, const Settings& settings, const Ids& ids,
                          const std::optional<std::int64_t>& most) {
  const auto count = static_cast<std::int64_t>(ids.size());
  if (ids.empty()) return usage("the prompt is empty", "", "give at least one token");
  for (const std::int64_t id : ids)
    if (id < 0 || id >= model.vocab)
      return usage("token id " + std::to_string(id) + " is outside 0.." + std::to_string(model.vocab - 1), "prompt",
                   "");
  if (most && *most < 1) return usage("max_new_tokens " + std::to_string(*most) + " is not positive", "", "");
  const std::int64_t left = model.context - count + 1, wanted = most.value_or(left);
  if (left < 1 || wanted > left) {
    const std::string asked = most ? " and " + std::to_string(*most) + " new tokens" : "";
    return usage(std::to_string(count) + " prompt tokens" + asked + " do not fit the context of " +
                     std::to_string(model.context),
                 "", "shorten the prompt, ask for fewer tokens, or build with a longer --context", Code::kContextFull);
  }
  if (settings.budget && count * model.layers > *settings.budget)
    return usage("the prompt alone costs " + std::to_string(count * model.layers) + " layer-rows, the budget is " +
                     std::to_string(*settings.budget),
                 "", "shorten the prompt or raise the budget");
  return wanted;
}

// One request, from its prompt to its last token (session.py, request.py).
class Request {
 public:
  Request(Decoder& decoder, const ModelInfo& model, const GenerateOptions& options, std::int64_t most,
          const OnToken& on_token)
      : decoder_(decoder),
        model_(model),
        sampling_(options.sampling),
        ends_(options.stop.value_or(model.eos)),
        most_(most),
        on_token_(on_token) {}

  Result<Generation> run(const Ids& prompt) {
    Stats& stats = found_.stats;
    stats.prompt_tokens = static_cast<std::int64_t>(prompt.size());
    Clock::time_point began = Clock::now();
    if (Status status = decoder_.start(prompt, sampling_); !status.ok()) return status;
    stats.prefill_seconds = seconds_since(began);
    while (true) {
      decoder_.account(stats);
      for (const Token& token : decoder_.certain())
        if (take(token)) return std::move(found_);
      if (spent()) {
        stats.stop_reason = "budget";
        return std::move(found_);
      }
      began = Clock::now();
      if (Status status = decoder_.step(); !status.ok()) return status;
      if (wants_flush())
        if (Status status = decoder_.flush(); !status.ok()) return status;
      stats.decode_seconds += seconds_since(began);
    }
  }

 private:
  bool ends(std::int64_t id) const { return std::find(ends_.begin(), ends_.end(), id) != ends_.end(); }

  // Notes a token that became certain; returns whether it was the last.
  bool take(const Token& token) {
    Stats& stats = found_.stats;
    ++stats.tokens;
    ++stats.exit_layers[token.exit_layer];
    found_.ids.push_back(token.id);
    found_.exit_layers.push_back(token.exit_layer);
    const bool goes_on = !on_token_ || on_token_(token);
    stats.stop_reason = ends(token.id) ? "stop" : stats.tokens == most_ ? "length" : goes_on ? "" : "cancelled";
    return !stats.stop_reason.empty();
  }

  // Whether drafts fill the request, or would end it, so that they have to be verified at once.
  bool wants_flush() const {
    const auto drafts = static_cast<std::int64_t>(decoder_.drafts());
    return drafts > 0 && (drafts >= most_ - found_.stats.tokens || ends(decoder_.last()));
  }

  // Whether the next tokens, priced at full depth for as many as may be pending, could pass the budget.
  bool spent() const {
    const Settings& settings = decoder_.settings();
    if (!settings.budget) return false;
    return found_.stats.layer_rows + (settings.full ? 1 : settings.cap + 1) * model_.layers > *settings.budget;
  }

  Decoder& decoder_;
  const ModelInfo& model_;
  const Sampling sampling_;
  const Ids ends_;
  const std::int64_t most_;
  const OnToken& on_token_;
  Generation found_;
};

}  // namespace

Session::Session(std::unique_ptr<State> state) : state_(std::move(state)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

Result<Generation> Session::generate(const Ids& prompt, const GenerateOptions& options, const OnToken& on_token) {
  try {
    const ModelInfo& model = state_->bundle->files.manifest.model;
    if (Status status = check_sampling(options.sampling); !status.ok()) return status;
    const Result<std::int64_t> most = room(model, state_->decoder.settings(), prompt, options.max_new_tokens);
    if (!most.ok()) return most.status();
    return Request(state_->decoder, model, options, *most, on_token).run(prompt);
  } catch (const std::exception& e) {
    return Status{Code::kInternal, std::string("the request failed: ") + e.what(), "", ""};
  }
}

}  // namespace eecompile
