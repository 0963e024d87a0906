// eecompile-bench: how fast a bundle is on this machine, as one JSON object.
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "eecompile/text.h"
#include "measure.h"

namespace eecompile {
namespace {

const char* const kHelp =
    "eecompile-bench BUNDLE [options]: measures the bundle's modes in turns; prints one JSON object\n"
    "  --prompt TEXT (in the model's chat template; --raw: as it is), or --prompt-length N made-up tokens (default: 32)\n"
    "  --modes full,exact,confident (default: those that the bundle runs)   --tokens N (64)   --rounds N (5)\n"
    "  --threads N (default: the processors at hand)   --integrity hash|size   --onnxruntime FILE\n"
    "  --backend auto|onnxruntime|tensorrt|cuda   --plugin FILE\n"
    "tokens_per_second and the like are medians of the rounds; outside_engines is the share of decoding that is not in\n"
    "engines; start.seconds is from opening the bundle to the first token of a request\n";

struct Arguments {
  std::string bundle, prompt;
  std::int64_t prompt_length = 32, threads = 0;
  bool raw = false, help = false;
  OpenOptions open;
  MeasureOptions measure;
};

constexpr const char* kMend = "eecompile-bench --help";

int fail(const Status& status) {
  std::fprintf(stderr, "error %s\n", status.text().c_str());
  return status.exit_status();
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

Result<Arguments> parse(const std::vector<std::string>& words) {
  Arguments a;
  const auto whole = [](std::int64_t& target) {
    return [&target](const std::string& text) {
      char* end = nullptr;
      errno = 0;
      target = std::strtoll(text.c_str(), &end, 10);
      return !text.empty() && *end == '\0' && errno == 0 && 0 < target && target <= 1'000'000;
    };
  };
  const auto text_in = [](std::string& target) {
    return [&target](const std::string& text) { return !(target = text).empty(); };
  };
  const std::map<std::string, std::function<bool(const std::string&)>> options = {
      {"--prompt", text_in(a.prompt)},
      {"--prompt-length", whole(a.prompt_length)},
      {"--modes", [&](const std::string& text) { return !(a.measure.modes = split(text)).empty(); }},
      {"--tokens", whole(a.measure.tokens)},
      {"--rounds", whole(a.measure.rounds)},
      {"--threads", whole(a.threads)},
      {"--onnxruntime", text_in(a.open.onnxruntime)},
      {"--backend", text_in(a.open.backend)},
      {"--plugin", text_in(a.open.plugin)},
      {"--integrity", [&](const std::string& text) {
         a.open.integrity = text == "size" ? Integrity::kSize : Integrity::kHash;
         return text == "size" || text == "hash";
       }}};
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--help" || words[i] == "-h" || words[i] == "--raw") {
      (words[i] == "--raw" ? a.raw : a.help) = true;
    } else if (words[i].rfind("--", 0) != 0 && a.bundle.empty()) {
      a.bundle = words[i];
    } else {
      const auto option = options.find(words[i]);
      if (option == options.end()) return usage("there is no option " + words[i], kMend);
      if (i + 1 == words.size() || !option->second(words[i + 1]))
        return usage(words[i] + " has no value that it takes", kMend);
      ++i;
    }
  }
  if (a.bundle.empty() && !a.help) return usage("give a BUNDLE", kMend);
  if (a.threads > 4096) return usage("--threads is not from 1 to 4096", kMend);
  a.open.threads = static_cast<int>(a.threads);
  return a;
}

// The prompt's ids: of a text, or made up.
Result<Ids> prompt_of(const Bundle& bundle, const Arguments& a) {
  if (!a.prompt.empty()) {
    const Result<Text> text = Text::open(bundle);
    if (!text.ok()) return text.status();
    if (a.raw) return text->encode(a.prompt);
    return text->prompt(a.prompt);
  }
  Ids ids;
  for (std::int64_t i = 0; i < a.prompt_length; ++i) ids.push_back((i * 7919 + 11) % bundle.model().vocab);
  return ids;
}

nlohmann::ordered_json json_of(const Measured& m) {
  return {{"mode", m.mode},
          {"tokens_per_second", median(m.tokens_per_second)},
          {"prefill_seconds", median(m.prefill_seconds)},
          {"outside_engines", median(m.outside)},
          {"mean_depth", m.mean_depth},
          {"tokens", m.tokens},
          {"rounds", m.tokens_per_second}};
}

std::string json_of(const Arguments& a, const Bundle& bundle, const Measurements& found) {
  const OpenSeconds open = bundle.open_seconds();
  const double beyond = open.files + found.session_seconds + found.first_token_seconds;
  nlohmann::ordered_json modes = nlohmann::ordered_json::array();
  for (const Measured& m : found.modes) modes.push_back(json_of(m));
  const nlohmann::ordered_json whole = {
      {"bundle", a.bundle},
      {"backend", bundle.backend()},
      {"gpu", bundle.gpu().empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(bundle.gpu())},
      {"prompt_tokens", a.measure.prompt.size()},
      {"integrity", a.open.integrity == Integrity::kHash ? "hash" : "size"},
      {"start",
       {{"seconds", beyond + open.engines},
        {"engines_load_seconds", open.engines},
        {"beyond_load_seconds", beyond},
        {"files_seconds", open.files},
        {"session_seconds", found.session_seconds},
        {"first_token_seconds", found.first_token_seconds}}},
      {"modes", modes}};
  return whole.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

int run(const std::vector<std::string>& words) {
  Result<Arguments> a = parse(words);
  if (!a.ok()) return fail(a.status());
  if (a->help) return std::fputs(kHelp, stdout), 0;
  const Result<Bundle> bundle = Bundle::open(a->bundle, a->open);
  if (!bundle.ok()) return fail(bundle.status());
  Result<Ids> prompt = prompt_of(*bundle, *a);
  if (!prompt.ok()) return fail(prompt.status());
  a->measure.prompt = std::move(prompt).value();
  const Result<Measurements> found = measure(*bundle, a->measure);
  if (!found.ok()) return fail(found.status());
  std::puts(json_of(*a, *bundle, *found).c_str());
  return 0;
}

}  // namespace
}  // namespace eecompile

int main(int count, char** words) { return eecompile::run({words + 1, words + count}); }
