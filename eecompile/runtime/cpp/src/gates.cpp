#include "gates.h"

#include <algorithm>
#include <cstring>

#include "sampling.h"

namespace eecompile {

void GateState::start(std::int64_t first) {
  first_ = position = first;
  walk = Walk();
  learners_.clear();
  notes_.clear();
}

void GateState::begin(std::int64_t at) {
  position = at;
  walk = Walk();
  notes_.erase(at);  // of a walk that was rolled back
}

void GateState::learn(std::int64_t at, std::int64_t token) {
  const auto found = notes_.find(at);
  if (found == notes_.end()) return;
  for (const Note& note : found->second) learners_.at(note.exit).learn(note.confidence, note.token == token);
  notes_.erase(found);
}

Bounds GateState::bounds(const ExitRule& rule) const {
  Bounds found = rule.bounds;
  for (const std::size_t column : {0, 1})  // of max_prob and margin
    if (rule.schedule && found[column] >= 0)
      found[column] = static_cast<float>(moved(rule, static_cast<double>(found[column])));
  return found;
}

double GateState::moved(const ExitRule& rule, double bound) const {
  const ThresholdSchedule& schedule = *rule.schedule;
  if (!schedule.adaptive) return decayed(bound / 0.9, position - first_, schedule.tau, schedule.tokens);
  const auto learner = learners_.find(rule.exit);
  if (learner == learners_.end() || !learner->second.threshold()) return bound;
  const double fitted = *learner->second.threshold();
  return free_ ? fitted : std::max(bound, fitted);
}

void GateState::note(const ExitRule& rule, double max_prob, double margin, std::int64_t token) {
  if (!rule.schedule || !rule.schedule->adaptive) return;
  learners_.try_emplace(rule.exit, *rule.schedule);
  notes_[position].push_back({rule.exit, rule.bounds[1] >= 0 ? margin : max_prob, token});
}

bool ExitGates::passes(const ExitRule& rule, const ExitAsker& asker, std::size_t row) const {
  const auto lets_on = [&](const auto& gate) {
    return in_range(gate.first, static_cast<double>(asker.value(gate.first, row)), gate.second);
  };
  return rule.opens && std::all_of(rule.cheap.begin(), rule.cheap.end(), lets_on);
}

Status ExitGates::ask(std::size_t exit, const float* rows, const std::vector<GateState*>& states, const Slots& slots,
                      Answers& answers) {
  Walks walks;
  for (GateState* state : states) walks.push_back(&state->walk);
  ExitAsker& asker = *askers_[exit];
  if (Status status = asker.ask(rows, walks, slots); !status.ok()) return status;
  std::vector<bool> passed;
  std::vector<std::size_t> asked;
  for (std::size_t i = 0; i < states.size(); ++i) {
    const ExitRule& rule = *states[i]->rules[exit];
    passed.push_back(passes(rule, asker, i));
    if (passed.back() || rule.votes) asked.push_back(i);
  }
  answers.assign(states.size(), std::nullopt);
  return asked.empty() ? Status{} : decide(exit, states, passed, asked, answers);
}

// Runs the head on the rows `asked`, and sets the answers of those that fire.
Status ExitGates::decide(std::size_t exit, const std::vector<GateState*>& states, const std::vector<bool>& passed,
                         const std::vector<std::size_t>& asked, Answers& answers) {
  const ExitAsker& asker = *askers_[exit];
  const auto width = static_cast<std::size_t>(manifest_.model.hidden);
  rows_.resize(asked.size() * width);
  bounds_.clear();
  bool logits = false;
  for (std::size_t row = 0; row < asked.size(); ++row) {
    const GateState& state = *states[asked[row]];
    std::memcpy(rows_.data() + row * width, asker.hidden() + asked[row] * width, width * sizeof(float));
    const Bounds own = state.bounds(*state.rules[exit]);
    bounds_.insert(bounds_.end(), own.begin(), own.end());
    logits = logits || !state.sampling.greedy();
  }
  const Result<Decisions> decided = heads_.at(manifest_.exits[exit].head)
                                        .decide(rows_.data(), static_cast<std::int64_t>(asked.size()), bounds_.data(),
                                                logits);
  if (!decided.ok()) return decided.status();
  for (std::size_t row = 0; row < asked.size(); ++row) {
    const std::size_t i = asked[row];
    GateState& state = *states[i];
    const ExitRule& rule = *state.rules[exit];
    const std::int64_t token = decided->token[row];
    bool patient = true;
    if (rule.patience || rule.votes) {
      const std::int64_t streak = state.walk.vote(static_cast<std::int64_t>(exit), token);
      patient = !rule.patience || static_cast<double>(streak) > *rule.patience;
    }
    if (passed[i])
      state.note(rule, static_cast<double>(decided->max_prob[row]), static_cast<double>(decided->margin[row]), token);
    if (passed[i] && decided->exit_flag[row] && patient && asker.confirmed(i, token))
      answers[i] = choose(*decided, row, state.position, state.sampling);
    else
      ++state.declined;
  }
  return {};
}

std::int64_t choose(const Decisions& decided, std::size_t row, std::int64_t position, const Sampling& how) {
  if (decided.logits == nullptr || how.greedy()) return decided.token[row];
  return sample(decided.logits + row * static_cast<std::size_t>(decided.width), decided.width, position, how,
                decided.ids);
}

}  // namespace eecompile
