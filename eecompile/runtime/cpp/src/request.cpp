#include "request.h"

#include <algorithm>
#include <cmath>

namespace eecompile {
Status check_sampling(const Sampling& how) {
  if (!(how.temperature >= 0 && std::isfinite(how.temperature)))
    return usage("the temperature is not a number from 0 up");
  if (how.top_k < 0) return usage("top_k " + std::to_string(how.top_k) + " is negative", "0 keeps every token");
  if (!(how.top_p > 0 && how.top_p <= 1)) return usage("top_p is not above 0 and at most 1");
  if (!(how.sled_rate > 0 && std::isfinite(how.sled_rate)))
    return usage("the evolution rate is not a number above 0");
  return {};
}

Result<std::int64_t> room(const Manifest& manifest, const Settings& settings, const Ids& ids,
                          const std::optional<std::int64_t>& most) {
  const ModelInfo& model = manifest.model;
  const auto size = static_cast<std::int64_t>(ids.size()), count = first_tokens(manifest, size);
  if (ids.empty()) return usage("the prompt is empty", "give at least one token");
  for (const std::int64_t id : ids)
    if (id < 0 || id >= model.vocab)
      return usage("token id " + std::to_string(id) + " is outside 0.." + std::to_string(model.vocab - 1), "",
                   "prompt");
  if (most && *most < 1) return usage("max_new_tokens " + std::to_string(*most) + " is not positive");
  if (manifest.source && size > manifest.source->context)
    return Status{Code::kContextFull,
                  std::to_string(size) + " tokens of source do not fit the context of " +
                      std::to_string(manifest.source->context),
                  "", "shorten the source, or build with --context " + std::to_string(size)};
  const std::int64_t left = model.context - count + 1, wanted = most.value_or(left);
  if (left < 1 || wanted > left) {
    const std::string asked = most ? " and " + std::to_string(*most) + " new tokens" : "";
    return Status{Code::kContextFull,
                  std::to_string(count) + " prompt tokens" + asked + " do not fit the context of " +
                      std::to_string(model.context),
                  "", "shorten the prompt, ask for fewer tokens, or build with a longer --context"};
  }
  if (settings.budget && count * model.layers > *settings.budget)
    return usage("the prompt alone costs " + std::to_string(count * model.layers) + " layer-rows, the budget is " +
                     std::to_string(*settings.budget),
                 "shorten the prompt or raise the budget");
  return wanted;
}

Request::Request(const ModelInfo& model, const Settings& settings, const GenerateOptions& options, const Ids& prompt,
                 std::int64_t most)
    : model_(model), settings_(settings), ends_(options.stop.value_or(model.eos)), most_(most) {
  found_.stats.prompt_tokens = static_cast<std::int64_t>(prompt.size());
}

bool Request::ends(std::int64_t id) const { return std::find(ends_.begin(), ends_.end(), id) != ends_.end(); }

Status Request::take(const Continuation& one, const OnToken& on_token) {
  Stats& stats = found_.stats;
  one.account(stats);
  if (!one.fault.ok()) return one.fault;
  for (const Token& token : one.certain) {
    ++stats.tokens;
    ++stats.exit_layers[token.exit_layer];
    found_.ids.push_back(token.id);
    found_.exit_layers.push_back(token.exit_layer);
    const bool goes_on = !on_token || on_token(token);
    stats.stop_reason = ends(token.id) ? "stop" : stats.tokens == most_ ? "length" : goes_on ? "" : "cancelled";
    if (done()) return {};
  }
  if (spent()) stats.stop_reason = "budget";
  return {};
}

bool Request::wants_flush(const Continuation& one) const {
  const auto drafts = static_cast<std::int64_t>(one.drafts.size());
  return drafts > 0 && (drafts >= most_ - found_.stats.tokens || ends(one.last));
}

// Whether the next tokens, priced at full depth for as many as may be pending, could pass the budget.
bool Request::spent() const {
  if (!settings_.budget) return false;
  const bool nothing_waits = settings_.full() || settings_.kv == "selected";
  return found_.stats.layer_rows + (nothing_waits ? 1 : settings_.cap + 1) * model_.layers > *settings_.budget;
}

}  // namespace eecompile
