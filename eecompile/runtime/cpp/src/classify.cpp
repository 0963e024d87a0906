#include "classify.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "eecompile/contract.h"

namespace eecompile {
namespace {

AskedExit asked(const Manifest& m, SharedEngine engine) {
  return {std::move(engine), m.model.hidden, m.classes(), m.task == "regression"};
}

bool any(const std::vector<bool>& flags) { return std::find(flags.begin(), flags.end(), true) != flags.end(); }

}  // namespace

LabelAskers::LabelAskers(const Manifest& manifest, const LoadedGraphs& graphs) : head(asked(manifest, graphs.head)) {
  for (const SharedEngine& engine : graphs.exits) exits.push_back(asked(manifest, engine));
}

LabelWalk::LabelWalk(const Manifest& manifest, const LoadedGraphs& graphs, const ClassifierSettings& settings,
           const LabelAskers& askers, const std::vector<const EncodedText*>& texts)
    : manifest_(manifest),
      settings_(settings),
      askers_(askers),
      batch_(manifest, graphs, texts),
      labels_tokens_(manifest.task == contract::kTokens),
      regression_(manifest.task == "regression"),
      classes_(static_cast<std::size_t>(manifest.classes())),
      going_(batch_.size(), true) {
  const std::size_t units = labels_tokens_ ? batch_.size() : batch_.texts();
  logits_.resize(units * classes_);
  before_.resize(units, std::numeric_limits<float>::quiet_NaN());
  depth_.resize(units, manifest.model.layers);
}

Status LabelWalk::run() {
  if (Status status = batch_.embed(); !status.ok()) return status;
  const auto open = [&](std::size_t first) {
    return std::any_of(settings_.rules.begin() + static_cast<std::ptrdiff_t>(first), settings_.rules.end(),
                       [](const auto& rule) { return rule.has_value(); });
  };
  for (const Step& step : manifest_.schedule) {
    if (Status status = batch_.run(step.segment, going_); !status.ok()) return status;
    if (!step.exit || !open(*step.exit)) continue;
    if (Status status = leave(*step.exit); !status.ok()) return status;
    if (!any(going_)) return {};
  }
  return finish();
}

// Asks an exit of the units that go on and answers those that fire, which go no further.
Status LabelWalk::leave(std::size_t exit) {
  const std::optional<ClassRule>& rule = settings_.rules[exit];
  if (!rule && !regression_) return {};
  const Rows those = units();
  std::vector<float> before;
  for (const std::size_t unit : those) before.push_back(before_[unit]);
  const Result<Said> said = askers_.exits[exit](states(those), those.size(), rule, before);
  if (!said.ok()) return said.status();
  for (std::size_t i = 0; regression_ && i < those.size(); ++i) before_[those[i]] = said->logits[i];
  if (!rule || !any(said->fires)) return {};
  const std::vector<bool> leaving = fired(those, said->fires);
  answer(those, leaving, *said, manifest_.exits[exit].layer);
  remove(those, leaving);
  return {};
}

Status LabelWalk::finish() {
  const Rows left = units();
  if (left.empty()) return {};
  const Result<Said> said = askers_.head(states(left), left.size(), std::nullopt, {});
  if (!said.ok()) return said.status();
  if (!std::all_of(said->logits.begin(), said->logits.end(), [](float x) { return std::isfinite(x); }))
    return {Code::kNumeric, "the model's logits are not finite", "",
            "check the checkpoint's weights with `eecompile verify`; float16 weights may overflow"};
  answer(left, std::vector<bool>(left.size(), true), *said, manifest_.model.layers);
  return {};
}

void LabelWalk::answer(const Rows& units, const std::vector<bool>& which, const Said& said, std::int64_t depth) {
  for (std::size_t i = 0; i < units.size(); ++i) {
    if (!which[i]) continue;
    std::copy_n(&said.logits[i * classes_], classes_, &logits_[units[i] * classes_]);
    depth_[units[i]] = depth;
  }
}

// Which of `units` leave: those whose gate fired, but a text's tokens only all together unless per token.
std::vector<bool> LabelWalk::fired(const Rows& units, const std::vector<bool>& fires) const {
  if (!labels_tokens_ || settings_.per_token) return fires;
  std::vector<bool> unsure(batch_.texts()), whole(units.size());
  for (std::size_t i = 0; i < units.size(); ++i)
    if (!fires[i] && !batch_.special(units[i])) unsure[batch_.text(units[i])] = true;
  for (std::size_t i = 0; i < units.size(); ++i) whole[i] = !unsure[batch_.text(units[i])];
  return whole;
}

// Takes the rows of units out of what goes on. A text that only has special tokens left is done.
void LabelWalk::remove(const Rows& units, const std::vector<bool>& which) {
  std::vector<bool> gone(depth_.size()), unanswered(batch_.texts());
  for (std::size_t i = 0; i < units.size(); ++i) gone[units[i]] = which[i];
  for (std::size_t row = 0; row < going_.size(); ++row) {
    if (gone[labels_tokens_ ? row : batch_.text(row)]) going_[row] = false;
    if (going_[row] && !(labels_tokens_ && batch_.special(row))) unanswered[batch_.text(row)] = true;
  }
  for (std::size_t row = 0; row < going_.size(); ++row)
    if (!unanswered[batch_.text(row)]) going_[row] = false;
}

Rows LabelWalk::units() const {
  Rows found;
  const std::size_t count = depth_.size();
  for (std::size_t unit = 0; unit < count; ++unit)
    if (going_[labels_tokens_ ? unit : batch_.first(unit)]) found.push_back(unit);
  return found;
}

std::vector<float> LabelWalk::states(const Rows& units) const {
  if (labels_tokens_) return batch_.states(units);
  Rows rows;
  for (const std::size_t unit : units) rows.push_back(batch_.first(unit));
  return batch_.states(rows);
}

}  // namespace eecompile
