// Classification in the C interface.
#include <algorithm>

#include "c_parts.h"

using namespace eecompile;

struct eecompile_classifier {
  Classifier classifier;
  std::vector<std::string> labels;
};

namespace {

Result<std::vector<EncodedText>> texts_of(const eecompile_tokens* texts, size_t count) {
  std::vector<EncodedText> found(count);
  for (std::size_t i = 0; i < count; ++i) {
    if (lacks(texts[i].tokens, texts[i].count)) return Status{Code::kUsage, "a text has no tokens", "", ""};
    for (const eecompile_token* one = texts[i].tokens; one != texts[i].tokens + texts[i].count; ++one) {
      found[i].ids.push_back(one->id);
      found[i].types.push_back(one->type);
      found[i].special.push_back(one->special != 0);
    }
  }
  return found;
}

// Hands out what a text, or a token, was classified as; without scores it has no label of its own.
void answer(eecompile_answer one, const std::vector<double>& scores, const std::vector<std::string>& labels,
            eecompile_on_answer on_answer, void* context) {
  const auto best = static_cast<std::size_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
  one.size = sizeof one;
  one.label = scores.empty() ? -1 : static_cast<std::int64_t>(best);
  one.name = scores.empty() ? "" : labels[best].c_str();
  one.scores = scores.data();
  one.score_count = scores.size();
  on_answer(context, &one);
}

ClassifierOptions options_of(const eecompile_classifier_options& given) {
  ClassifierOptions options;
  if (given.mode != nullptr) options.mode = given.mode;
  if (given.granularity != nullptr) options.granularity = given.granularity;
  options.minimum_depth = unless_zero(given.minimum_depth);
  options.budget = unless_zero(given.budget);
  options.thresholds = thresholds_of(given.thresholds, given.threshold_count);
  return options;
}

eecompile_classify_stats stats_of(const ClassifyStats& s) {
  return {0, s.texts, s.tokens, s.passes, s.layer_rows, s.frozen_rows, s.seconds, s.mean_depth()};
}

}  // namespace

std::int32_t eecompile_classifier_new(const eecompile_bundle* bundle, const eecompile_classifier_options* options,
                                      eecompile_classifier** classifier) {
  if (bundle == nullptr || classifier == nullptr) return fail("there is no bundle, or nowhere to put the classifier");
  *classifier = nullptr;
  if (sizeless(options)) return fail(kNoSize);
  return guarded([&]() -> std::int32_t {
    Result<Classifier> made = bundle->bundle.classifier(options_of(known(options)));
    if (!made.ok()) return fail(made.status());
    *classifier = new eecompile_classifier{std::move(made).value(), bundle->labels};
    return EECOMPILE_OK;
  });
}

void eecompile_classifier_free(eecompile_classifier* classifier) { delete classifier; }

std::int32_t eecompile_classify(const eecompile_classifier* classifier, const eecompile_tokens* texts, size_t count,
                                size_t batch, eecompile_on_answer on_answer, void* context,
                                eecompile_classify_stats* stats) {
  if (classifier == nullptr || lacks(texts, count) || on_answer == nullptr)
    return fail("there is no classifier, nothing to classify, or nobody to tell");
  if (sizeless(stats)) return fail(kNoSize);
  return guarded([&]() -> std::int32_t {
    const Result<std::vector<EncodedText>> given = texts_of(texts, count);
    if (!given.ok()) return fail(given.status());
    const auto done = classifier->classifier.classify(*given, batch == 0 ? Classifier::kBatch : batch);
    if (!done.ok()) return fail(done.status());
    const std::vector<std::string>& labels = classifier->labels;
    for (std::size_t i = 0; i < count; ++i) {
      const Classification& one = done->found[i];
      for (const TokenLabel& token : one.tokens)
        answer({0, i, static_cast<std::int64_t>(token.place), token.id, -1, token.exit_layer, nullptr, nullptr, 0},
               token.scores, labels, on_answer, context);
      answer({0, i, -1, -1, -1, one.exit_layer, nullptr, nullptr, 0}, one.scores, labels, on_answer, context);
    }
    if (stats != nullptr) tell(stats_of(done->stats), stats);
    return EECOMPILE_OK;
  });
}
