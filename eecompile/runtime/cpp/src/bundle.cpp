#include "eecompile/bundle.h"

#include <algorithm>
#include <chrono>
#include <exception>

#include "backends.h"
#include "bundle_state.h"
#include "eecompile/contract.h"

namespace eecompile {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

Status usage(std::string what, std::string mend = "") { return {Code::kUsage, std::move(what), "", std::move(mend)}; }

// The policy with `options`' thresholds in place of its own.
Result<Policy> overridden(const BundleFiles& files, const SessionOptions& options) {
  Policy policy = files.policy;
  for (const auto& [layer, thresholds] : options.thresholds) {
    std::size_t i = 0;
    while (i < policy.exits.size() && policy.exits[i].layer != layer) ++i;
    if (i == policy.exits.size()) return usage("there is no exit at layer " + std::to_string(layer));
    if (thresholds)
      if (const std::string fault = thresholds_fault(*thresholds, files.manifest.exits[i], files.manifest.model.vocab);
          !fault.empty())
        return usage("exit " + std::to_string(layer) + ": " + fault);
    (options.mode == "confident" ? policy.exits[i].confident : policy.exits[i].draft) = thresholds;
  }
  return policy;
}

Status check_calibrated(const BundleFiles& files, const Policy& policy) {
  const Manifest& m = files.manifest;
  if (policy.kv != "catch_up")
    return {Code::kUnsupported, "this runtime does not do confident mode with the rule " + policy.kv, "",
            "use mode exact, or the Python runtime"};
  const auto matching = [&](const Calibration& c) { return matches(c, m, files.policy); };
  if (!m.exits.empty() && std::none_of(files.calibrations.begin(), files.calibrations.end(), matching))
    return {Code::kUncalibrated,
            "no calibration of these exits for " + m.precision + " and catch_up allows any of them", "",
            "run `eecompile calibrate BUNDLE --data FILE`, or use mode exact, whose drafts need none"};
  const std::string fault = confident_fault(m, policy, files.calibrations);
  if (fault.empty()) return {};
  return {Code::kUncalibrated, fault, "", "choose thresholds inside the calibrated range, or calibrate at more risk"};
}

Result<Settings> settings_of(const BundleFiles& files, const SessionOptions& options) {
  const Manifest& m = files.manifest;
  if (std::find(contract::kModes.begin(), contract::kModes.end(), options.mode) == contract::kModes.end())
    return usage("there is no mode " + options.mode, "modes: full, confident, exact");
  Settings s;
  s.full = options.mode == "full";
  s.exact = options.mode == "exact";
  s.cap = options.pending_cap.value_or(m.pending_cap);
  if (s.cap < 1 || s.cap > m.pending_cap)
    return usage("pending cap " + std::to_string(s.cap) + " is not from 1 to " + std::to_string(m.pending_cap));
  const std::int64_t asked = options.minimum_depth.value_or(0);
  if (asked < 0 || asked > m.model.layers)
    return usage("minimum depth " + std::to_string(asked) + " is not from 0 to the model's " +
                 std::to_string(m.model.layers) + " layers");
  if (options.budget && *options.budget < 1)
    return usage("budget " + std::to_string(*options.budget) + " is not a positive number of layer-rows");
  s.budget = files.policy.budget && options.budget ? std::min(files.policy.budget, options.budget)
             : files.policy.budget                 ? files.policy.budget
                                                   : options.budget;
  if (s.full) return s;
  Result<Policy> policy = overridden(files, options);
  if (!policy.ok()) return policy.status();
  if (!s.exact)
    if (Status status = check_calibrated(files, *policy); !status.ok()) return status;
  const std::int64_t depth = std::max(files.policy.minimum_depth, asked);
  for (const ExitPolicy& e : policy->exits) {
    const std::optional<Thresholds>& thresholds = s.exact ? e.draft : e.confident;
    s.rules.push_back(thresholds && e.layer >= depth ? ExitRule::of(*thresholds) : std::nullopt);
  }
  return s;
}

}  // namespace

Bundle::Bundle(std::shared_ptr<const State> state) : state_(std::move(state)) {}

Result<Bundle> Bundle::open(const std::string& path, const OpenOptions& options) {
  try {
    const Clock::time_point began = Clock::now();
    Result<BundleFiles> files = read_bundle(path, options.integrity);
    if (!files.ok()) return files.status();
    const Clock::time_point read = Clock::now();
    Result<LoadedGraphs> graphs = load_graphs(*files, options);
    if (!graphs.ok()) return graphs.status();
    const OpenSeconds seconds{Seconds(read - began).count(), Seconds(Clock::now() - read).count()};
    return Bundle(std::make_shared<const State>(State{std::move(*files), std::move(*graphs), seconds}));
  } catch (const std::exception& e) {
    return Status{Code::kInternal, std::string("the bundle cannot be opened: ") + e.what(), path, ""};
  }
}

const ModelInfo& Bundle::model() const { return state_->files.manifest.model; }

std::vector<ExitDescription> Bundle::exits() const {
  std::vector<ExitDescription> found;
  for (std::size_t i = 0; i < state_->files.policy.exits.size(); ++i) {
    const ExitPolicy& e = state_->files.policy.exits[i];
    found.push_back({e.layer, state_->files.manifest.exits[i].gates, e.confident, e.draft});
  }
  return found;
}

std::string Bundle::tokenizer() const {
  return state_->files.manifest.tokenizer ? state_->files.path + "/tokenizer/tokenizer.json" : "";
}

OpenSeconds Bundle::open_seconds() const { return state_->seconds; }

Result<Session> Bundle::session(const SessionOptions& options) const {
  try {
    Result<Settings> settings = settings_of(state_->files, options);
    if (!settings.ok()) return settings.status();
    return Session(std::make_unique<Session::State>(state_, std::move(*settings)));
  } catch (const std::exception& e) {
    return Status{Code::kInternal, std::string("the session cannot be made: ") + e.what(), "", ""};
  }
}

double engine_seconds() { return PassClock::seconds(); }

}  // namespace eecompile
