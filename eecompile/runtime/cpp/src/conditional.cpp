#include "conditional.h"

#include <algorithm>
#include <set>
#include <stdexcept>

#include "eecompile/contract.h"

namespace eecompile {
namespace {

// What of an exit's rule a graph cannot decide by; empty where it can by all of it.
std::string unfit_exit(const ExitInfo& exit, const GraphInfo& graph, const ExitRule& rule) {
  const std::string where = "the exit after layer " + std::to_string(exit.layer);
  std::set<std::string> others(exit.gates.begin(), exit.gates.end());
  others.erase("learned");
  others.erase("fixed");
  for (const std::string_view criterion : contract::kHeadCriteria) others.erase(std::string(criterion));
  if (!others.empty()) return where + " goes by " + *others.begin();
  if (graph.layers > 0) return where + " has a layer of its own";
  if (rule.patience || rule.votes || !rule.opens) return where + " votes for others";
  return "";
}

}  // namespace

Status ConditionalDecoder::step(const Those& those) {
  if (fits(those)) {
    Continuation& one = *those[0];
    StepShape shape;
    for (std::size_t k = 0; k < one.stairs.steps(); ++k) {
      shape.waiting.push_back(one.stairs.waiting(k));
      const std::optional<std::size_t>& exit = manifest_.schedule[k].exit;
      if (exit && one.may_exit(*exit)) shape.exits.push_back(*exit);
    }
    Status status = prepare(one, shape);
    if (status.ok()) {
      away_ = true;
      return walk(one, shape);
    }
    if (strict_ || status.code != Code::kInternal) return status;
    fault_ = std::move(status);
  }
  if (Status status = come_home(); !status.ok()) return status;
  return Decoder::step(those);
}

Status ConditionalDecoder::flush(const Those& those) {
  if (std::any_of(those.begin(), those.end(), [](const Continuation* one) { return !one->drafts.empty(); }))
    if (Status status = come_home(); !status.ok()) return status;
  return Decoder::flush(those);
}

// Whether the next step may be a graph.
bool ConditionalDecoder::fits(const Those& those) const {
  return fault_.ok() && those.size() == 1 && those[0]->state.sampling.greedy() &&
         (away_ || those[0]->stairs.pending() == 0);
}

Status ConditionalDecoder::prepare(const Continuation& one, const StepShape& shape) {
  try {
    return steps_->prepare(one.last, shape);
  } catch (const std::runtime_error& e) {  // of the GPU's memory
    return {Code::kInternal, e.what(), "the GPU", ""};
  }
}

Status ConditionalDecoder::come_home() {
  if (!away_) return {};
  away_ = false;
  return steps_->fetch();
}

// Runs a step, then notes of each of its parts what the GPU has done.
Status ConditionalDecoder::walk(Continuation& one, const StepShape& shape) {
  one.certain.clear();
  one.stairs.entered(1);
  one.state.begin(one.stairs.length());
  std::map<std::size_t, Bounds> bounds;
  for (const std::size_t exit : shape.exits) bounds[exit] = one.state.bounds(*one.settings.rules[exit]);
  if (Status status = steps_->run(shape, bounds); !status.ok()) return status;
  for (std::size_t k = 0; k < one.stairs.steps(); ++k) {
    one.stairs.went(k);
    const std::optional<std::size_t>& exit = manifest_.schedule[k].exit;
    if (!exit || bounds.count(*exit) == 0) continue;
    bool left = false;
    Status status = ask(one, *one.settings.rules[*exit], k, left);
    if (!status.ok() || left) return status;
  }
  const Result<Decisions> decided = steps_->finished(shape);
  if (!decided.ok()) return decided.status();
  verify(one, *decided, 0, steps_->asked_rows(shape));
  return {};
}

// Takes into account what the exit after step k has said; `left`: whether the token has left by it.
Status ConditionalDecoder::ask(Continuation& one, const ExitRule& rule, std::size_t k, bool& left) {
  const DeviceExit& said = steps_->exit(rule.exit);
  const Result<ExitOutcome> outcome = said.outcome();
  if (!outcome.ok() || *outcome == ExitOutcome::kRefused) return outcome.status();
  const Decisions decided = said.decisions();
  one.state.note(rule, static_cast<double>(decided.max_prob[0]), static_cast<double>(decided.margin[0]),
                 decided.token[0]);
  left = *outcome == ExitOutcome::kFired;
  if (left)
    one.leave({decided.token[0], manifest_.exits[rule.exit].layer}, k);
  else
    ++one.state.declined;
  return {};
}

std::string unfit(const Manifest& m, const LoadedGraphs& graphs, const Settings& settings) {
  if (!graphs.branches) return graphs.unbranched;
  if (m.source) return "the model is an encoder-decoder";
  if (!graphs.cycles.empty()) return "steps run again by gates of their own";
  if (settings.kv != "catch_up") return "the rule for skipped layers is " + settings.kv;
  if (m.minimum_rows > 1) return "the bundle's passes have more rows than wait for them";
  for (std::size_t exit = 0; exit < settings.rules.size(); ++exit) {
    if (!settings.rules[exit]) continue;
    std::string why = unfit_exit(m.exits[exit], graphs.exits[exit]->info(), *settings.rules[exit]);
    if (!why.empty()) return why;
  }
  return "";
}

Result<std::unique_ptr<Decoder>> choose_decoder(const Manifest& m, const LoadedGraphs& graphs,
                                                const Settings& settings, Staircase& stairs, Askers& askers,
                                                const std::string& decision) {
  const bool strict = decision == "conditional";
  const std::string why = unfit(m, graphs, settings);
  if (!why.empty() && strict)
    return Status{Code::kUsage, "the GPU cannot decide here: " + why, "", "use --decision auto"};
  if (!why.empty())
    return std::make_unique<Decoder>(m, graphs, askers, 1, m.pending_cap + 1);
  Result<std::unique_ptr<DeviceSteps>> steps =
      DeviceSteps::make(graphs, stairs, askers, settings.rules, settings.exact());
  if (!steps.ok()) return steps.status();
  return std::unique_ptr<Decoder>(
      std::make_unique<ConditionalDecoder>(m, graphs, askers, std::move(steps).value(), strict));
}

}  // namespace eecompile
