#include "decode.h"

#include <algorithm>
#include <cmath>

#include "eecompile/contract.h"

namespace eecompile {
namespace {

Stairs stairs_of(const Those& those) {
  Stairs found;
  for (const Continuation* one : those) found.push_back(&one->stairs);
  return found;
}

Those joined(Those one, const Those& other) {
  one.insert(one.end(), other.begin(), other.end());
  return one;
}

}  // namespace

Status not_finite(std::int64_t position) {
  return {Code::kNumeric, "the model's logits are not finite", "position " + std::to_string(position),
          "check the checkpoint's weights with `eecompile verify`; float16 weights may overflow"};
}

bool Continuation::may_exit(std::size_t exit) const {
  return settings.rules[exit] && (early < settings.cap || settings.kv != "catch_up");
}

void Continuation::leave(const Token& token, std::size_t step) {
  last = token.id;
  ++early;
  if (settings.kv == "propagate") stairs.leave_at(step + 1);
  if (settings.kv == "selected") stairs.stop_at(step + 1);
  if (!settings.exact()) {
    certain = {token};
    return;
  }
  ++drafted;
  drafts.push_back(token);
}

void Continuation::account(Stats& stats) const {
  stats.drafted = drafted;
  stats.rejected = rejected;
  stats.declined = state.declined;
  stats.segment_passes = stairs.passes();
  stats.layer_rows = stairs.layer_rows();
}

Status Decoder::start(const Those& those) {
  for (Continuation* one : those) one->state.start(one->stairs.length());
  return emit(those, true);
}

Status Decoder::step(const Those& those) {
  if (those.empty()) return {};
  std::vector<Tokens> tokens;
  for (Continuation* one : those) {
    one->certain.clear();
    tokens.push_back({&one->last, 1});
  }
  Pool& pool = those[0]->stairs.pool();
  if (Status status = make_room(those); !status.ok()) return status;
  if (Status status = pool.embed(stairs_of(those), tokens); !status.ok()) return status;
  for (Continuation* one : those) one->state.begin(one->stairs.length());
  Those walking = those, left, beside;
  for (std::size_t k = 0; k < manifest_.schedule.size(); ++k) {
    beside.clear();
    if (!left.empty())
      if (Status status = riding(k, walking, left, beside); !status.ok()) return status;
    if (Status status = pool.run_step(k, stairs_of(joined(walking, beside))); !status.ok()) return status;
    const std::optional<std::size_t>& exit = manifest_.schedule[k].exit;
    if (!exit) continue;
    if (Status status = ask(k, *exit, walking, left); !status.ok()) return status;
    if (walking.empty()) return {};
  }
  return finish(joined(std::move(walking), beside));
}

Status Decoder::flush(const Those& all) {
  Those those;
  for (Continuation* one : all)
    if (!one->drafts.empty()) those.push_back(one);
  if (those.empty()) return {};
  for (std::size_t k = 0; k < manifest_.schedule.size(); ++k) {
    Stairs waiting;
    for (Continuation* one : those)
      if (one->stairs.waiting(k) > 0) waiting.push_back(&one->stairs);
    if (waiting.empty()) continue;
    if (Status status = those[0]->stairs.pool().run_step(k, waiting); !status.ok()) return status;
  }
  return finish(those);
}

// K/V-only passes for sequences with as many left rows as may wait.
Status Decoder::make_room(const Those& those) {
  Stairs full;
  for (Continuation* one : those)
    if (one->settings.kv == "propagate" && one->stairs.pending() >= one->settings.cap) full.push_back(&one->stairs);
  for (std::size_t k = 0; k < manifest_.schedule.size() && !full.empty(); ++k)
    if (Status status = full[0]->pool().fill(k, full); !status.ok()) return status;
  return {};
}

// Those that have left and whose rows before step k are worth running along; propagated ones are filled in.
Status Decoder::riding(std::size_t k, const Those& walking, const Those& left, Those& found) {
  Pool& pool = walking[0]->stairs.pool();
  const auto has_left = [&](const Continuation* one) { return one->stairs.left(k) > 0; };
  if (std::any_of(walking.begin(), walking.end(), has_left))
    if (Status status = pool.fill(k, stairs_of(joined(walking, left))); !status.ok()) return status;
  Those others;
  for (Continuation* one : left)
    if (one->stairs.waiting(k) > 0 && one->settings.kv != "propagate") others.push_back(one);
  const Waiting ours = pool.waiting(k, stairs_of(walking)), theirs = pool.waiting(k, stairs_of(others));
  if (riders(ours, theirs, pool.each_pass(), pool.most())) found = std::move(others);
  return {};
}

// Asks the exit after step k about the newest row of each that may leave there, and moves those that do to `left`.
Status Decoder::ask(std::size_t k, std::size_t exit, Those& walking, Those& left) {
  Those asked;
  std::vector<GateState*> states;
  Slots slots;
  rows_.clear();
  for (Continuation* one : walking) {
    if (!one->may_exit(exit)) continue;
    const float* row = one->stairs.last_row();
    rows_.insert(rows_.end(), row, row + manifest_.model.hidden);
    asked.push_back(one);
    states.push_back(&one->state);
    slots.push_back(one->stairs.slot());
  }
  if (asked.empty()) return {};
  Answers answers;
  if (Status status = gates_.ask(exit, rows_.data(), states, slots, answers); !status.ok()) return status;
  for (std::size_t i = 0; i < asked.size(); ++i) {
    if (!answers[i]) continue;
    asked[i]->leave({*answers[i], manifest_.exits[exit].layer}, k);
    left.push_back(asked[i]);
    walking.erase(std::find(walking.begin(), walking.end(), asked[i]));
  }
  return {};
}

// Emits from finished rows. What rode along is verified where it was drafted; otherwise nobody asks for it.
Status Decoder::finish(const Those& those) {
  Those emitting;
  for (Continuation* one : those)
    if (one->settings.exact() || one->certain.empty()) emitting.push_back(one);
  return emit(emitting, false);
}

// Chooses from each one's finished rows: the last alone, or in exact mode all that the last step finished.
Status Decoder::emit(const Those& those, bool alone) {
  if (those.empty()) return {};
  std::vector<std::int64_t> counts;
  bool logits = false;
  std::int64_t all = 0;
  rows_.clear();
  for (const Continuation* one : those) {
    const std::int64_t count = one->settings.exact() && !alone ? one->stairs.newest_rows() : 1;
    const float* end = one->stairs.last_row() + manifest_.model.hidden;
    rows_.insert(rows_.end(), end - count * manifest_.model.hidden, end);
    counts.push_back(count);
    all += count;
    logits = logits || !one->state.sampling.greedy();
  }
  Head& head = heads_.at(std::string(contract::kFullHead));
  const Result<Decisions> decided = head.decide(rows_.data(), all, nullptr, logits);
  if (!decided.ok()) return decided.status();
  std::size_t first = 0;
  for (std::size_t i = 0; i < those.size(); ++i) {
    verify(*those[i], *decided, first, counts[i]);
    first += static_cast<std::size_t>(counts[i]);
  }
  return {};
}

// Row at + i holds the full model's choice for the position after it; keeps drafts while they agree with it. In a mode
// without drafts this is the one token that the one row chooses. What follows a wrong draft is not looked at.
void Decoder::verify(Continuation& one, const Decisions& decided, std::size_t at, std::int64_t count) const {
  const std::int64_t first = one.stairs.settled() - count + 1;
  std::vector<Token> now;
  std::size_t right = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto number = static_cast<std::size_t>(i);
    if (!std::isfinite(decided.max_prob[at + number])) {
      one.fault = not_finite(first + i);
      return;
    }
    const std::int64_t token = choose(decided, at + number, first + i, one.state.sampling);
    one.state.learn(first + i, token);
    const bool drafted = number < one.drafts.size() && one.drafts[number].id == token;
    now.push_back(drafted ? one.drafts[number] : Token{token, manifest_.model.layers});
    if (!drafted) break;
    ++right;
  }
  one.certain.insert(one.certain.end(), now.begin(), now.end());  // a flush after a step adds to what the step settled
  if (right == static_cast<std::size_t>(count)) {                 // of drafts alone: what was drafted last goes on
    one.drafts.erase(one.drafts.begin(), one.drafts.begin() + static_cast<std::ptrdiff_t>(right));
    one.early = static_cast<std::int64_t>(one.drafts.size());
    return;
  }
  const auto made = static_cast<std::int64_t>(now.size());
  if (made < count || one.drafts.size() > right) one.stairs.rewind(first + made - 1);
  one.rejected += static_cast<std::int64_t>(one.drafts.size() - right);
  one.drafts.clear();
  one.early = 0;
  one.last = now.back().id;
}

}  // namespace eecompile
