// What a classifier may do: which exits are open, at which thresholds, and whether that was calibrated
// (classifier_rules.py).
//
// Thread safety: functions of their arguments. Cost: a few comparisons a calibration.
#pragma once

#include <optional>
#include <vector>

#include "bundle_files.h"
#include "eecompile/classifier.h"
#include "labels.h"

namespace eecompile {

// rules: per exit, nothing where it is closed. per_token: rows leave alone.
struct ClassifierSettings {
  std::vector<std::optional<ClassRule>> rules;
  bool per_token = false;
  std::optional<std::int64_t> budget;
};

// kUsage for options that the bundle cannot serve, kUncalibrated for what no calibration allows.
Result<ClassifierSettings> classifier_settings(const BundleFiles& files, const ClassifierOptions& options);

}  // namespace eecompile
