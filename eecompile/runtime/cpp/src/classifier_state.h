// What Classifier hides. Thread safety and cost: its.
#pragma once

#include "bundle_state.h"
#include "classify.h"
#include "eecompile/classifier.h"

namespace eecompile {

struct Classifier::State {
  State(std::shared_ptr<const Bundle::State> opened, ClassifierSettings chosen)
      : bundle(std::move(opened)), settings(std::move(chosen)), askers(bundle->files.manifest, bundle->graphs) {}

  Result<Classified> run(const std::vector<EncodedText>& texts, std::size_t batch) const;

  std::shared_ptr<const Bundle::State> bundle;
  ClassifierSettings settings;
  LabelAskers askers;

 private:
  // Checks every text, and prices it at full depth, before any runs.
  Status admit(const std::vector<EncodedText>& texts) const;
  Status run_batch(const std::vector<EncodedText>& texts, const Rows& chosen, Classified& all) const;
};

}  // namespace eecompile
