#include "classify.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>

#include <nlohmann/json.hpp>

#include "texts.h"

namespace eecompile {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr std::size_t kWindow = 512;  // lines of a file that are read, sorted by length and classified at a time
constexpr std::size_t kShown = 5;     // labels

OrderedJson object_of(const Classification& found, const ReadText& read, bool labels_tokens) {
  if (!labels_tokens) return {{"label", found.label}, {"scores", found.scores}, {"exit_layer", found.exit_layer}};
  OrderedJson tokens = OrderedJson::array();
  for (const TokenLabel& t : found.tokens) {
    const bool text = !read.spans.empty();
    OrderedJson start, end;
    if (text) start = read.spans[t.place].first, end = read.spans[t.place].second;
    tokens.push_back({{"id", t.id},
                      {"text", read.piece(t.place)},
                      {"start", start},
                      {"end", end},
                      {"pair", text && read.second[t.place] ? 1 : 0},
                      {"label", t.label},
                      {"scores", t.scores},
                      {"exit_layer", t.exit_layer}});
  }
  return {{"tokens", tokens}, {"exit_layer", found.exit_layer}};
}

std::string line_of(const OrderedJson& object) {
  return object.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

OrderedJson json_of(const ClassifyStats& s) {
  return {{"seconds", s.seconds},        {"tokens", s.tokens},         {"mean_depth", s.mean_depth()},
          {"segment_passes", s.passes}, {"layer_rows", s.layer_rows}, {"frozen_rows", s.frozen_rows}};
}

void print(const Bundle& bundle, const Classification& found, const ReadText& read, bool labels_tokens) {
  if (labels_tokens) {
    for (const TokenLabel& t : found.tokens)
      std::printf("%s\t%s\t%.4f\t%lld\n", read.piece(t.place).c_str(), t.label.c_str(),
                  *std::max_element(t.scores.begin(), t.scores.end()), static_cast<long long>(t.exit_layer));
    return;
  }
  const auto layers = static_cast<long long>(found.exit_layer);
  if (found.scores.size() == 1) {
    std::printf("%s %.6g after %lld layers\n", found.label.c_str(), found.scores[0], layers);
    return;
  }
  std::printf("%s after %lld layers\n", found.label.c_str(), layers);
  std::vector<std::pair<double, std::string>> all;
  const std::vector<std::string> labels = bundle.labels();
  for (std::size_t i = 0; i < labels.size(); ++i) all.emplace_back(-found.scores[i], labels[i]);
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (std::size_t i = 0; i < std::min(all.size(), kShown); ++i)
    std::printf("  %s %.4f\n", all[i].second.c_str(), -all[i].first);
}

Status run_one(const Bundle& bundle, const Classifier& classifier, const Arguments& a) {
  if (!a.output.empty()) return usage("--output goes with --input", "a single text is printed");
  const TextEncoder encoder(bundle, a.truncate);
  Result<ReadText> read = encoder(TextInput{a.prompt.value_or(""), a.pair, a.prompt_ids});
  if (!read.ok()) return read.status();
  const Result<Classified> done = classifier.classify({read->encoded});
  if (!done.ok()) return done.status();
  const bool labels_tokens = bundle.task() == "token-classification";
  if (a.json) {
    OrderedJson whole = object_of(done->found[0], *read, labels_tokens);
    whole["mode"] = a.session.mode;
    whole["stats"] = json_of(done->stats);
    std::fputs(line_of(whole).c_str(), stdout);
    return {};
  }
  print(bundle, done->found[0], *read, labels_tokens);
  std::fprintf(stderr, "%lld tokens, %.3f s, mean depth %.2f\n", static_cast<long long>(done->stats.tokens),
               done->stats.seconds, done->stats.mean_depth());
  return {};
}

// A file of texts, a window at a time; of one that cannot be classified, why.
class Answers {
 public:
  Answers(const Bundle& bundle, const Classifier& classifier, const Arguments& a)
      : classifier_(classifier),
        encoder_(bundle, a.truncate),
        batch_(a.batch > 0 ? a.batch : Classifier::kBatch),
        labels_tokens_(bundle.task() == "token-classification") {}

  Result<std::string> lines(const std::vector<TextInput>& texts) {
    std::vector<ReadText> read;
    for (const TextInput& text : texts) {
      Result<ReadText> one = encoder_(text);
      if (!one.ok()) return alone(texts, one.status());
      read.push_back(std::move(*one));
    }
    std::vector<EncodedText> encoded;
    for (const ReadText& one : read) encoded.push_back(one.encoded);
    const Result<Classified> done = classifier_.classify(encoded, batch_);
    if (!done.ok()) return alone(texts, done.status());
    std::string found;
    for (std::size_t i = 0; i < read.size(); ++i) found += line_of(object_of(done->found[i], read[i], labels_tokens_));
    return found;
  }

  std::size_t failed() const { return failed_; }

 private:
  Result<std::string> alone(const std::vector<TextInput>& texts, const Status& fault) {
    if (fault.code != Code::kUsage && fault.code != Code::kContextFull) return fault;
    if (texts.size() == 1) {
      ++failed_;
      OrderedJson one;
      one["error"] = fault.text();
      return line_of(one);
    }
    std::string found;
    for (const TextInput& text : texts) {
      Result<std::string> one = lines({text});
      if (!one.ok()) return one;
      found += *one;
    }
    return found;
  }

  const Classifier& classifier_;
  const TextEncoder encoder_;
  std::size_t batch_, failed_ = 0;
  bool labels_tokens_;
};

Status write_all(TextFile& texts, Answers& answers, std::ostream& out, std::size_t& done) {
  while (true) {
    const Result<std::vector<TextInput>> window = texts.next(kWindow);
    if (!window.ok()) return window.status();
    if (window->empty()) break;
    const Result<std::string> lines = answers.lines(*window);
    if (!lines.ok()) return lines.status();
    out << *lines;
    done += window->size();
  }
  out.flush();
  return out.good() ? Status{} : Status{Code::kInternal, "the answers cannot be written", "", "is the disk full?"};
}

// The output file appears once it is whole.
Status write_file(TextFile& texts, Answers& answers, const std::string& target, std::size_t& done) {
  const std::string part = target + "." + std::to_string(getpid()) + ".part";
  std::ofstream out(part, std::ios::binary);
  if (!out) return {Code::kUsage, "the output cannot be written", target, ""};
  Status status = write_all(texts, answers, out, done);
  out.close();
  if (status.ok() && std::rename(part.c_str(), target.c_str()) != 0)
    status = {Code::kUsage, "the output cannot be written", target, ""};
  if (!status.ok()) std::remove(part.c_str());
  return status;
}

Status run_file(const Bundle& bundle, const Classifier& classifier, const Arguments& a) {
  TextFile texts(a.input);
  Answers answers(bundle, classifier, a);
  std::size_t done = 0;
  const Status status =
      a.output.empty() ? write_all(texts, answers, std::cout, done) : write_file(texts, answers, a.output, done);
  if (!status.ok()) return status;
  std::fprintf(stderr, "%zu texts\n", done);
  if (answers.failed() == 0) return {};
  return {Code::kInternal, std::to_string(answers.failed()) + " of " + std::to_string(done) + " texts failed",
          a.output.empty() ? "stdout" : a.output, "see \"error\" in their lines"};
}

}  // namespace

Status classify(const Bundle& bundle, const Arguments& a) {
  if (Status status = refuse_given(a, {"--max-new-tokens", "--temperature", "--top-k", "--top-p", "--seed",
                                       "--pending-cap", "--raw", "--stream", "--kv", "--sled", "--sled-rate"},
                                   "classifies texts");
      !status.ok())
    return status;
  SessionOptions parsed = a.session;
  if (Status status = add_thresholds(a.thresholds, bundle, parsed); !status.ok()) return status;
  ClassifierOptions options;
  options.mode = a.session.mode;
  options.granularity = a.granularity;
  options.minimum_depth = a.session.minimum_depth;
  options.budget = a.session.budget;
  options.thresholds = std::move(parsed.thresholds);
  const Result<Classifier> classifier = bundle.classifier(options);
  if (!classifier.ok()) return classifier.status();
  return !a.input.empty() ? run_file(bundle, *classifier, a) : run_one(bundle, *classifier, a);
}

}  // namespace eecompile
