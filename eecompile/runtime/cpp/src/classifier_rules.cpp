#include "classifier_rules.h"

#include <algorithm>

#include "eecompile/contract.h"

namespace eecompile {
namespace {

constexpr std::string_view kSentence = "sentence", kToken = "token";

// What becomes of the keys and values of deeper layers: nobody reads those of a text that left.
std::string rule_of(std::string_view granularity) { return granularity == kToken ? "propagate" : "none"; }

std::vector<const Calibration*> matching(const BundleFiles& files, std::string_view granularity) {
  std::vector<const Calibration*> found;
  for (const Calibration& c : files.calibrations)
    if (matches(c, files.manifest, files.policy, rule_of(granularity))) found.push_back(&c);
  return found;
}

Point confident_of(const Policy& policy) {
  Point found;
  for (const ExitPolicy& e : policy.exits) found.push_back(e.confident);
  return found;
}

// Whether these are the thresholds of a point of a calibration per token, up to the one that was chosen.
bool is_tested(const BundleFiles& files, const Point& chosen) {
  const std::vector<const Calibration*> those = matching(files, kToken);
  return std::any_of(those.begin(), those.end(), [&](const Calibration* c) {
    return std::find(c->tested.begin(), c->tested.end(), chosen) != c->tested.end();
  });
}

// What leaves a batch: as asked for, or tokens where the policy's thresholds were tested so, or whole texts.
Result<std::string> granularity_of(const BundleFiles& files, const std::optional<std::string>& asked) {
  const bool labels_tokens = files.manifest.task == contract::kTokens;
  if (!asked) {
    const bool only = !matching(files, kToken).empty() && matching(files, kSentence).empty();
    return std::string(only || is_tested(files, confident_of(files.policy)) ? kToken : kSentence);
  }
  if (*asked == kSentence || (*asked == kToken && labels_tokens)) return *asked;
  return usage("there is no granularity " + *asked + " here",
               "granularities of a " + files.manifest.task + ": sentence" + (labels_tokens ? ", token" : ""));
}

// The policy with `options`' thresholds in place of its own.
Result<Policy> with_thresholds(const BundleFiles& files, const ClassifierOptions& options) {
  Policy policy = files.policy;
  for (const auto& [layer, thresholds] : options.thresholds) {
    const auto exit = std::find_if(policy.exits.begin(), policy.exits.end(),
                                   [layer = layer](const ExitPolicy& e) { return e.layer == layer; });
    if (exit == policy.exits.end()) return usage("there is no exit at layer " + std::to_string(layer));
    const ExitInfo& info = files.manifest.exits[static_cast<std::size_t>(exit - policy.exits.begin())];
    if (thresholds)
      if (const std::string fault = thresholds_fault(*thresholds, info, files.manifest.classes()); !fault.empty())
        return usage("exit " + std::to_string(layer) + ": " + fault);
    exit->confident = thresholds;
  }
  return policy;
}

Status check_allowed(const BundleFiles& files, const Policy& policy, const std::string& granularity) {
  const Manifest& m = files.manifest;
  if (!m.exits.empty() && matching(files, granularity).empty())
    return {Code::kUncalibrated,
            "no calibration of these exits for " + m.precision + " and exits per " + granularity +
                " allows any of them",
            "", "run `eecompile calibrate BUNDLE --data FILE --granularity " + granularity + "`, or use mode full"};
  const std::string fault = confident_fault(m, policy, files.calibrations, rule_of(granularity));
  if (fault.empty()) return {};
  return {Code::kUncalibrated, fault, "", "choose thresholds inside the calibrated range, or calibrate at more risk"};
}

// A token that leaves changes what its neighbours see, so that safer thresholds need not lose less: only points that
// were tested keep the guarantee per token.
Status check_tested(const BundleFiles& files, const Point& chosen) {
  if (is_tested(files, chosen)) return {};
  return {Code::kUncalibrated, "these thresholds were not tested together with exits per token", "",
          "take those of a point of the calibration's path up to the chosen one (`eecompile inspect BUNDLE --json`), "
          "close all exits, or use exits per sentence, where every safer threshold is covered"};
}

// The open exits of confident mode. depth: layers that every text runs.
Result<std::vector<std::optional<ClassRule>>> confident_rules(const BundleFiles& files, const std::string& granularity,
                                                              const ClassifierOptions& options, std::int64_t depth) {
  const Result<Policy> policy = with_thresholds(files, options);
  if (!policy.ok()) return policy.status();
  if (Status status = check_allowed(files, *policy, granularity); !status.ok()) return status;
  Point chosen = confident_of(*policy);
  for (std::size_t i = 0; i < chosen.size(); ++i)
    if (policy->exits[i].layer < depth) chosen[i] = std::nullopt;
  const bool open = std::any_of(chosen.begin(), chosen.end(), [](const auto& one) { return one.has_value(); });
  if (granularity == kToken && open)
    if (Status status = check_tested(files, chosen); !status.ok()) return status;
  std::vector<std::optional<ClassRule>> rules;
  for (const auto& thresholds : chosen) rules.push_back(thresholds ? ClassRule::of(*thresholds) : std::nullopt);
  return rules;
}

Status check_mode(const std::string& mode) {
  if (mode == "exact")
    return usage("a classifier has no mode exact: there is no later pass that could check an exit",
                 "use mode full, or mode confident with a calibration");
  const auto& modes = contract::kClassifyModes;
  return std::find(modes.begin(), modes.end(), mode) != modes.end()
             ? Status{}
             : usage("there is no mode " + mode, "modes: full, confident");
}

}  // namespace

Result<ClassifierSettings> classifier_settings(const BundleFiles& files, const ClassifierOptions& options) {
  const Manifest& m = files.manifest;
  if (m.generates()) return usage("this bundle generates text", "use `Bundle::session` and `Session::generate`");
  if (Status status = check_mode(options.mode); !status.ok()) return status;
  const Result<std::string> granularity = granularity_of(files, options.granularity);
  if (!granularity.ok()) return granularity.status();
  const std::int64_t asked = options.minimum_depth.value_or(0);
  if (const std::string fault = limits_fault(m, asked, options.budget); !fault.empty()) return usage(fault);
  ClassifierSettings settings{std::vector<std::optional<ClassRule>>(m.exits.size()), *granularity == kToken,
                              files.policy.budget};
  if (options.budget) settings.budget = std::min(*options.budget, settings.budget.value_or(*options.budget));
  if (options.mode == "full") return settings;
  auto rules = confident_rules(files, *granularity, options, std::max(files.policy.minimum_depth, asked));
  if (!rules.ok()) return rules.status();
  settings.rules = std::move(*rules);
  return settings;
}

}  // namespace eecompile
