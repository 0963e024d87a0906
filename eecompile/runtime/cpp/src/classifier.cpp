// Classifier: admits texts, walks them down in batches, and names what came of it.
#include <algorithm>
#include <exception>
#include <numeric>

#include "classifier_state.h"
#include "clock.h"
#include "eecompile/contract.h"

namespace eecompile {
namespace {

Status refuse(Code code, std::string what, std::size_t number, std::size_t count, std::string mend) {
  const std::string where = count > 1 ? "text " + std::to_string(number + 1) + " of " + std::to_string(count) : "";
  return {code, std::move(what), where, std::move(mend)};
}

Status check_text(const ModelInfo& model, const EncodedText& text, std::size_t number, std::size_t count) {
  const std::size_t n = text.ids.size();
  const auto usage = [&](std::string what, std::string mend = "") {
    return refuse(Code::kUsage, std::move(what), number, count, std::move(mend));
  };
  for (const std::int64_t id : text.ids)
    if (id < 0 || id >= model.vocab)
      return usage("token id " + std::to_string(id) + " is outside 0.." + std::to_string(model.vocab - 1));
  if (n == 0) return usage("the text has no tokens", "give at least one token");
  if ((!text.types.empty() && text.types.size() != n) || (!text.special.empty() && text.special.size() != n))
    return usage("a text has another number of kinds or special tokens than of tokens");
  if (std::any_of(text.types.begin(), text.types.end(), [](std::int64_t kind) { return kind < 0; }))
    return usage("a token's kind is negative");
  if (static_cast<std::int64_t>(n) > model.context)
    return refuse(Code::kContextFull,
                  "a text of " + std::to_string(n) + " tokens does not fit the context of " +
                      std::to_string(model.context),
                  number, count, "split it, or let its end be cut off: --truncate");
  return {};
}

// A unit's label and scores.
template <typename Named>
Named named(const Manifest& m, const LabelWalk& walk, std::size_t unit) {
  const auto classes = static_cast<std::size_t>(m.classes());
  Named found;
  found.scores = m.task == "regression" ? std::vector<double>{walk.logits(unit)[0]}
                                        : probabilities(walk.logits(unit), classes);
  const auto best = std::max_element(found.scores.begin(), found.scores.end());
  found.label = m.labels[static_cast<std::size_t>(best - found.scores.begin())];
  found.exit_layer = walk.depth(unit);
  return found;
}

Classification of_tokens(const Manifest& m, const LabelWalk& walk, std::size_t text, const Ids& ids) {
  Classification whole;
  std::int64_t deepest = 0, deepest_special = 0;
  for (std::size_t place = 0; place < ids.size(); ++place) {
    const std::size_t row = walk.batch().first(text) + place;
    std::int64_t& deep = walk.batch().special(row) ? deepest_special : deepest;
    deep = std::max(deep, walk.depth(row));
    if (walk.batch().special(row)) continue;
    auto token = named<TokenLabel>(m, walk, row);
    token.place = place;
    token.id = ids[place];
    whole.tokens.push_back(std::move(token));
  }
  whole.exit_layer = whole.tokens.empty() ? deepest_special : deepest;
  return whole;
}

void count(const Classification& one, bool labels_tokens, ClassifyStats& stats) {
  if (!labels_tokens) ++stats.exit_layers[one.exit_layer];
  for (const TokenLabel& token : one.tokens) ++stats.exit_layers[token.exit_layer];
}

}  // namespace

Status Classifier::State::admit(const std::vector<EncodedText>& texts) const {
  const ModelInfo& model = bundle->files.manifest.model;
  std::size_t longest = 0;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    if (Status status = check_text(model, texts[i], i, texts.size()); !status.ok()) return status;
    longest = std::max(longest, texts[i].ids.size());
  }
  const std::int64_t price = static_cast<std::int64_t>(longest) * model.layers;
  if (!settings.budget || price <= *settings.budget) return {};
  return {Code::kUsage,
          "a text of " + std::to_string(longest) + " tokens may take " + std::to_string(price) +
              " layer-rows, more than the budget of " + std::to_string(*settings.budget),
          "", "shorten it, or raise the budget: `eecompile policy BUNDLE set --budget N`"};
}

Status Classifier::State::run_batch(const std::vector<EncodedText>& texts, const Rows& chosen, Classified& all) const {
  const Manifest& m = bundle->files.manifest;
  const bool labels_tokens = m.task == contract::kTokens;
  std::vector<const EncodedText*> those;
  for (const std::size_t i : chosen) those.push_back(&texts[i]);
  LabelWalk walk(m, bundle->graphs, settings, askers, those);
  if (Status status = walk.run(); !status.ok()) return status;
  walk.batch().account(all.stats);
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    all.found[chosen[i]] = labels_tokens ? of_tokens(m, walk, i, those[i]->ids) : named<Classification>(m, walk, i);
    count(all.found[chosen[i]], labels_tokens, all.stats);
  }
  return {};
}

Result<Classified> Classifier::State::run(const std::vector<EncodedText>& texts, std::size_t batch) const {
  if (batch < 1) return Status{Code::kUsage, "batch 0 is not a positive number of texts", "", ""};
  const Clock::time_point began = Clock::now();
  if (Status status = admit(texts); !status.ok()) return status;
  Classified all;
  all.found.resize(texts.size());
  Rows order(texts.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return texts[a].ids.size() < texts[b].ids.size(); });
  for (std::size_t start = 0; start < order.size(); start += batch) {
    const std::size_t end = start + std::min(batch, order.size() - start);
    const Rows chosen(order.begin() + static_cast<std::ptrdiff_t>(start),
                      order.begin() + static_cast<std::ptrdiff_t>(end));
    if (Status status = run_batch(texts, chosen, all); !status.ok()) return status;
  }
  all.stats.texts = static_cast<std::int64_t>(texts.size());
  for (const EncodedText& text : texts) all.stats.tokens += static_cast<std::int64_t>(text.ids.size());
  all.stats.seconds = seconds_since(began);
  return all;
}

double ClassifyStats::mean_depth() const {
  std::int64_t sum = 0, all = 0;
  for (const auto& [depth, answers] : exit_layers) sum += depth * answers, all += answers;
  return static_cast<double>(sum) / static_cast<double>(std::max<std::int64_t>(all, 1));
}

Classifier::Classifier(std::shared_ptr<const State> state) : state_(std::move(state)) {}

Result<Classified> Classifier::classify(const std::vector<EncodedText>& texts, std::size_t batch) const {
  try {
    return state_->run(texts, batch);
  } catch (const std::exception& e) {
    return Status{Code::kInternal, std::string("the request failed: ") + e.what(), "", ""};
  }
}

bool Classifier::per_token() const { return state_->settings.per_token; }

}  // namespace eecompile
