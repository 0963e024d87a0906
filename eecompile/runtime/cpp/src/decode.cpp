#include "decode.h"

#include <cmath>

#include "eecompile/contract.h"
#include "sampling.h"

namespace eecompile {
namespace {

Status not_finite(std::int64_t position) {
  return {Code::kNumeric, "the model's logits are not finite", "position " + std::to_string(position),
          "check the checkpoint's weights with `eecompile verify`; float16 weights may overflow"};
}

}  // namespace

std::optional<ExitRule> ExitRule::of(const Thresholds& thresholds) {
  if (thresholds.count("never") > 0) return std::nullopt;
  ExitRule rule{contract::kNoBound, std::nullopt};
  for (std::size_t i = 0; i < contract::kHeadCriteria.size(); ++i) {
    const auto found = thresholds.find(std::string(contract::kHeadCriteria[i]));
    if (found != thresholds.end()) rule.bounds[i] = static_cast<float>(found->second);
  }
  if (const auto found = thresholds.find("learned"); found != thresholds.end()) rule.cheap = found->second;
  return rule;
}

Decoder::Decoder(const Manifest& manifest, const LoadedGraphs& graphs, const Policy& policy, Settings settings)
    : manifest_(manifest),
      settings_(std::move(settings)),
      stairs_(manifest, graphs),
      head_(graphs.head, manifest, manifest.model.vocab, manifest.pending_cap + 1) {
  for (const HeadInfo& info : manifest.heads) {
    const std::int64_t width =
        info.tokens.empty() ? manifest.model.vocab : static_cast<std::int64_t>(info.tokens.size());
    heads_.emplace(info.name, Head(graphs.heads.at(info.name), manifest, width, 1, info.tokens));
  }
  for (std::size_t i = 0; i < manifest.exits.size(); ++i)
    askers_.emplace_back(graphs.exits[i], manifest.exits[i], policy.exits[i], manifest.model.hidden);
}

Status Decoder::start(const Ids& prompt, const Sampling& sampling) {
  stairs_.reset();
  sampling_ = sampling;
  drafts_.clear();
  certain_.clear();
  early_ = drafted_ = rejected_ = declined_ = 0;
  if (Status status = stairs_.prefill(prompt); !status.ok()) return status;
  last_ = prompt.back();
  const auto width = static_cast<std::int64_t>(manifest_.model.hidden);
  const Result<Decisions> decided =
      head_.decide(stairs_.newest() + (stairs_.newest_rows() - 1) * width, 1, contract::kNoBound, !sampling_.greedy());
  if (!decided.ok()) return decided.status();
  return verify(*decided, 1);
}

Status Decoder::step() {
  certain_.clear();
  if (Status status = stairs_.append(&last_, 1); !status.ok()) return status;
  for (std::size_t k = 0; k < stairs_.steps(); ++k) {
    if (Status status = stairs_.run_step(k); !status.ok()) return status;
    const std::optional<std::size_t> exit = manifest_.schedule[k].exit;
    if (!exit || settings_.rules.empty() || !settings_.rules[*exit] || early_ >= settings_.cap) continue;
    const Result<std::optional<std::int64_t>> token = ask(*exit);
    if (!token.ok()) return token.status();
    if (!*token) continue;
    last_ = **token;
    ++early_;
    drafted_ += settings_.exact;
    (settings_.exact ? drafts_ : certain_).push_back({last_, manifest_.exits[*exit].layer});
    return {};
  }
  return finish();
}

Status Decoder::flush() {
  if (drafts_.empty()) return {};
  for (std::size_t k = 0; k < stairs_.steps(); ++k)
    if (stairs_.waiting(k) > 0)
      if (Status status = stairs_.run_step(k); !status.ok()) return status;
  return finish();
}

Result<std::optional<std::int64_t>> Decoder::ask(std::size_t exit) {
  const ExitRule& rule = *settings_.rules[exit];
  const ExitInfo& info = manifest_.exits[exit];
  const float* newest = stairs_.newest() + (stairs_.newest_rows() - 1) * manifest_.model.hidden;
  if (Status status = askers_[exit].ask(newest); !status.ok()) return status;
  const double confidence = askers_[exit].confidence();
  if (rule.cheap && !(*rule.cheap < confidence && confidence <= 1)) return std::optional<std::int64_t>();
  Head& head = info.head == contract::kFullHead ? head_ : heads_.at(info.head);
  const Result<Decisions> decided = head.decide(askers_[exit].hidden(), 1, rule.bounds, !sampling_.greedy());
  if (!decided.ok()) return decided.status();
  if (*decided->exit_flag) return std::optional(choose(*decided, 0, stairs_.length()));
  ++declined_;
  return std::optional<std::int64_t>();
}

// Emits from finished rows: the last, or in exact mode all, since what rode along is verified where it was drafted.
Status Decoder::finish() {
  if (!settings_.exact && !certain_.empty()) return {};
  const std::int64_t rows = settings_.exact ? stairs_.newest_rows() : 1;
  const float* first = stairs_.newest() + (stairs_.newest_rows() - rows) * manifest_.model.hidden;
  const Result<Decisions> decided = head_.decide(first, rows, contract::kNoBound, !sampling_.greedy());
  if (!decided.ok()) return decided.status();
  return verify(*decided, rows);
}

// Row i holds the full model's choice for the position after it; keeps drafts while they agree with it. In a mode
// without drafts this is the one token that the one row chooses. What follows a wrong draft is not looked at.
Status Decoder::verify(const Decisions& decided, std::int64_t count) {
  const std::int64_t first = stairs_.settled() - count + 1;
  std::vector<Token> now;
  std::size_t right = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(decided.max_prob[i])) return not_finite(first + i);
    const std::int64_t token = choose(decided, i, first + i);
    const auto number = static_cast<std::size_t>(i);
    const bool drafted = number < drafts_.size() && drafts_[number].id == token;
    now.push_back(drafted ? drafts_[number] : Token{token, manifest_.model.layers});
    if (!drafted) break;
    ++right;
  }
  certain_.insert(certain_.end(), now.begin(), now.end());  // a flush after a step adds to what the step made certain
  if (right == static_cast<std::size_t>(count)) {           // of drafts alone: what was drafted last goes on
    drafts_.erase(drafts_.begin(), drafts_.begin() + static_cast<std::ptrdiff_t>(right));
    early_ = static_cast<std::int64_t>(drafts_.size());
    return {};
  }
  const auto made = static_cast<std::int64_t>(now.size());
  if (made < count || drafts_.size() > right) stairs_.rewind(first + made - 1);
  rejected_ += static_cast<std::int64_t>(drafts_.size() - right);
  drafts_.clear();
  early_ = 0;
  last_ = certain_.back().id;
  return {};
}

std::int64_t Decoder::choose(const Decisions& decided, std::int64_t row, std::int64_t position) const {
  if (decided.logits == nullptr) return decided.token[row];
  return sample(decided.logits + row * decided.width, decided.width, position, sampling_, decided.ids);
}

void Decoder::account(Stats& stats) const {
  stats.drafted = drafted_;
  stats.rejected = rejected_;
  stats.declined = declined_;
  stats.segment_passes = stairs_.passes();
  stats.layer_rows = stairs_.layer_rows();
}

}  // namespace eecompile
