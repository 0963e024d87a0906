#include "eecompile/bundle.h"

#include <algorithm>
#include <exception>

#include "backends.h"
#include "bundle_state.h"
#include "classifier_state.h"
#include "clock.h"
#include "conditional.h"
#include "eecompile/contract.h"
#include "fault.h"

namespace eecompile {
namespace {

// The K/V rule that requests run by: `options`', or the policy's in confident mode.
Result<std::string> kv_rule(const BundleFiles& files, const SessionOptions& options) {
  const Manifest& m = files.manifest;
  const std::string rule = options.kv.value_or(options.mode == "confident" ? files.policy.kv : "catch_up");
  const auto& known = contract::kKvRules;
  if (std::find(known.begin(), known.end(), rule) == known.end())
    return usage("there is no K/V rule " + rule, "rules: catch_up, propagate, selected");
  if (options.mode == "exact" && rule != "catch_up")
    return usage("exact mode verifies with the full model's keys and values, and " + rule + " does not keep them",
                 "leave the rule to exact mode (catch_up), or use mode confident");
  if (std::find(m.kv_rules.begin(), m.kv_rules.end(), rule) == m.kv_rules.end())
    return usage("the bundle has no graphs for " + rule, "build with --kv catch_up," + rule);
  return rule;
}

// The policy for the K/V rule `kv`, with `options`' thresholds in place of its own.
Result<Policy> overridden(const BundleFiles& files, const SessionOptions& options, const std::string& kv) {
  const bool confident = options.mode == "confident";
  Policy policy = files.policy;
  if (confident && kv != policy.kv) {  // another rule than the policy's has thresholds of its own
    const Calibration* found = matching(files.calibrations, files.manifest, policy, kv);
    for (std::size_t i = 0; i < policy.exits.size(); ++i)
      policy.exits[i].confident = found == nullptr ? std::nullopt : found->tested.back()[i];
  }
  for (const auto& [layer, thresholds] : options.thresholds) {
    std::size_t i = 0;
    while (i < policy.exits.size() && policy.exits[i].layer != layer) ++i;
    if (i == policy.exits.size()) return usage("there is no exit at layer " + std::to_string(layer));
    if (thresholds)
      if (const std::string fault = thresholds_fault(*thresholds, files.manifest.exits[i], files.manifest.model.vocab);
          !fault.empty())
        return usage("exit " + std::to_string(layer) + ": " + fault);
    (confident ? policy.exits[i].confident : policy.exits[i].draft) = thresholds;
  }
  policy.minimum_depth = std::max(policy.minimum_depth, options.minimum_depth.value_or(0));
  return policy;
}

Status check_calibrated(const BundleFiles& files, const Policy& policy, const std::string& kv) {
  const Manifest& m = files.manifest;
  if (!m.exits.empty() && matching(files.calibrations, m, files.policy, kv) == nullptr)
    return {Code::kUncalibrated,
            "no calibration of these exits for " + m.precision + " and " + kv + " allows any of them", "",
            "run `eecompile calibrate BUNDLE --data FILE" + (kv == "catch_up" ? "" : " --kv " + kv) +
                "`, or use mode exact, whose drafts need none"};
  const std::string fault = confident_fault(m, policy, files.calibrations, kv);
  if (fault.empty()) return {};
  return {Code::kUncalibrated, fault, "", "choose thresholds inside the calibrated range, or calibrate at more risk"};
}

}  // namespace

Result<Settings> settings_of(const BundleFiles& files, const SessionOptions& options) {
  const Manifest& m = files.manifest;
  if (!m.generates()) return usage("this bundle classifies texts", "use `Bundle::classifier`");
  if (std::find(contract::kModes.begin(), contract::kModes.end(), options.mode) == contract::kModes.end())
    return usage("there is no mode " + options.mode, "modes: full, confident, exact");
  Settings s;
  s.mode = options.mode;
  s.cap = options.pending_cap.value_or(m.pending_cap);
  if (s.cap < 1 || s.cap > m.pending_cap)
    return usage("pending cap " + std::to_string(s.cap) + " is not from 1 to " + std::to_string(m.pending_cap));
  const std::int64_t asked = options.minimum_depth.value_or(0);
  if (const std::string fault = limits_fault(m, asked, options.budget); !fault.empty()) return usage(fault);
  s.budget = files.policy.budget && options.budget ? std::min(files.policy.budget, options.budget)
             : files.policy.budget                 ? files.policy.budget
                                                   : options.budget;
  Result<std::string> kv = kv_rule(files, options);
  if (!kv.ok()) return kv.status();
  s.kv = std::move(*kv);
  s.rules.resize(m.exits.size());
  if (s.full()) return s;
  Result<Policy> policy = overridden(files, options, s.kv);
  if (!policy.ok()) return policy.status();
  if (!s.exact())
    if (Status status = check_calibrated(files, *policy, s.kv); !status.ok()) return status;
  for (std::size_t i = 0; i < m.exits.size(); ++i) {
    const ExitPolicy& e = policy->exits[i];
    const std::optional<Thresholds>& thresholds = s.exact() ? e.draft : e.confident;
    if (thresholds && e.layer >= policy->minimum_depth) s.rules[i] = ExitRule::of(i, *thresholds, m.exits[i].schedule);
  }
  s.rules = with_listeners(std::move(s.rules), m.exits);
  return s;
}

Askers Bundle::State::askers(std::size_t slots) const {
  const Manifest& m = files.manifest;
  Askers found;
  for (std::size_t i = 0; i < m.exits.size(); ++i) {
    const ExitPolicy& chosen = files.policy.exits[i];
    if (graphs.exits[i]->info().layers > 0)
      found.push_back(std::make_unique<LayerAsker>(graphs.exits[i], m, i, chosen, slots, files.each_pass));
    else
      found.push_back(
          std::make_unique<ExitAsker>(graphs.exits[i], m, i, chosen, static_cast<std::int64_t>(slots)));
  }
  return found;
}

Bundle::Bundle(std::shared_ptr<const State> state) : state_(std::move(state)) {}

Result<Bundle> Bundle::open(const std::string& path, const OpenOptions& options) {
  try {
    const Clock::time_point began = Clock::now();
    Result<BundleFiles> files = read_bundle(path, options.integrity);
    if (!files.ok()) return files.status();
    const Clock::time_point read = Clock::now();
    Result<LoadedGraphs> graphs = load_graphs(*files, options);
    if (!graphs.ok()) return graphs.status();
    const OpenSeconds seconds{seconds_between(began, read), seconds_since(read)};
    return Bundle(
        std::make_shared<const State>(State{std::move(*files), std::move(*graphs), seconds, options.decision}));
  } catch (const std::exception& e) {
    return thrown("the bundle cannot be opened", e, path);
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

const std::string& Bundle::backend() const { return state_->graphs.backend; }

std::string Bundle::gpu() const { return state_->graphs.memory().gpu(); }

const std::string& Bundle::task() const { return state_->files.manifest.task; }

std::vector<std::string> Bundle::labels() const { return state_->files.manifest.labels; }

std::string Bundle::tokenizer() const {
  return state_->files.manifest.tokenizer ? state_->files.path + "/tokenizer/tokenizer.json" : "";
}

OpenSeconds Bundle::open_seconds() const { return state_->seconds; }

Result<Session> Bundle::session(const SessionOptions& options) const {
  try {
    Result<Settings> settings = settings_of(state_->files, options);
    if (!settings.ok()) return settings.status();
    auto state = std::make_unique<Session::State>(state_, std::move(*settings));
    Result<std::unique_ptr<Decoder>> decoder = choose_decoder(state_->files.manifest, state_->graphs, state->settings,
                                                              state->stairs, state->askers, state_->decision);
    if (!decoder.ok()) return decoder.status();
    state->decoder = std::move(decoder).value();
    return Session(std::move(state));
  } catch (const std::exception& e) {
    return thrown("the session cannot be made", e);
  }
}

Result<Classifier> Bundle::classifier(const ClassifierOptions& options) const {
  try {
    Result<ClassifierSettings> settings = classifier_settings(state_->files, options);
    if (!settings.ok()) return settings.status();
    return Classifier(std::make_shared<const Classifier::State>(state_, std::move(*settings)));
  } catch (const std::exception& e) {
    return Status{Code::kInternal, std::string("the classifier cannot be made: ") + e.what(), "", ""};
  }
}

double engine_seconds() { return PassClock::seconds(); }

}  // namespace eecompile
