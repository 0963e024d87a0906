#include "arguments.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <functional>

namespace eecompile {
namespace {

std::optional<std::int64_t> integer(const std::string& text) {
  char* end = nullptr;
  errno = 0;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  return text.empty() || *end != '\0' || errno != 0 ? std::nullopt : std::optional<std::int64_t>(value);
}

std::optional<double> real(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  return text.empty() || *end != '\0' || !std::isfinite(value) ? std::nullopt : std::optional(value);
}

std::optional<Ids> ids_from(const std::string& text) {
  Ids ids;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    begin = end + 1;
    if (part.find_first_not_of(' ') == part.npos) continue;
    const std::optional<std::int64_t> id = integer(part);
    if (!id) return std::nullopt;
    ids.push_back(*id);
  }
  return ids;
}

// The one gate that a threshold is for; empty where that is not clear.
std::string gate_of(const std::string& criterion, const ExitDescription& exit) {
  if (criterion.empty()) return exit.gates.size() == 1 ? exit.gates[0] : "";
  return std::find(exit.gates.begin(), exit.gates.end(), criterion) == exit.gates.end() ? "" : criterion;
}

}  // namespace

const char* const kHelp =
    "eecompile-run BUNDLE PROMPT --raw | --prompt-ids 1,2,3 | --input FILE --output FILE [options]: generate from a "
    "bundle of a language model\n"
    "eecompile-run BUNDLE TEXT | --prompt-ids 1,2,3 | --input FILE [options]: classify with a bundle of an encoder\n"
    "  --raw: continue the text as it is, without the model's chat template\n"
    "  --mode full|confident|exact   --max-new-tokens N   --temperature T --top-k K --top-p P --seed N\n"
    "  --kv catch_up|propagate|selected   --sled --sled-rate R: logits that the exits correct, in mode full\n"
    "  --input FILE: prompts, .jsonl or .txt, one a line   --output FILE: a line of JSON for each   --batch N: side by "
    "side\n"
    "  --threshold LAYER[:CRITERION]=V or LAYER=never (repeats)   --pending-cap N --minimum-depth N --budget N\n"
    "  classifiers: --pair TEXT   --granularity sentence|token   --truncate\n"
    "  --json: one object and nothing else   --stream: tokens as they come   --threads N (default: the processors at "
    "hand)\n"
    "  --backend auto|onnxruntime|tensorrt|cuda   --plugin FILE: the exit decision's library, where engines call it\n"
    "  --decision auto|pinned|conditional: who decides at exits of engines, the host or the GPU (which takes --plugin)\n"
    "  --integrity hash|size   --onnxruntime FILE (default: the libonnxruntime.so.1 that the loader finds)\n";

Result<Arguments> parse(const std::vector<std::string>& words) {
  Arguments a;
  std::vector<std::string> places;
  const auto whole = [](auto& target) {
    return [&target](const std::string& text) {
      const auto value = integer(text);
      if (value) target = static_cast<std::decay_t<decltype(target)>>(*value);
      return value.has_value();
    };
  };
  const auto number = [](double& target) {
    return [&target](const std::string& text) {
      const auto value = real(text);
      if (value) target = *value;
      return value.has_value();
    };
  };
  std::int64_t seed = 0, threads = 0, batch = 0;
  const std::map<std::string, std::function<bool(const std::string&)>> options = {
      {"--prompt-ids", [&](const std::string& text) { return (a.prompt_ids = ids_from(text)).has_value(); }},
      {"--mode", [&](const std::string& text) { return a.session.mode = text, true; }},
      {"--threshold", [&](const std::string& text) { return a.thresholds.push_back(text), true; }},
      {"--backend", [&](const std::string& text) { return a.open.backend = text, !text.empty(); }},
      {"--plugin", [&](const std::string& text) { return a.open.plugin = text, !text.empty(); }},
      {"--decision", [&](const std::string& text) { return a.open.decision = text, !text.empty(); }},
      {"--onnxruntime", [&](const std::string& text) { return a.open.onnxruntime = text, !text.empty(); }},
      {"--integrity",
       [&](const std::string& text) {
         return a.open.integrity = text == "size" ? Integrity::kSize : Integrity::kHash,
                text == "size" || text == "hash";
       }},
      {"--pair", [&](const std::string& text) { return (a.pair = text).has_value(); }},
      {"--granularity", [&](const std::string& text) { return (a.granularity = text).has_value(); }},
      {"--max-new-tokens", whole(a.generate.max_new_tokens)},
      {"--pending-cap", whole(a.session.pending_cap)},
      {"--minimum-depth", whole(a.session.minimum_depth)},
      {"--budget", whole(a.session.budget)},
      {"--temperature", number(a.generate.sampling.temperature)},
      {"--top-k", whole(a.generate.sampling.top_k)},
      {"--top-p", number(a.generate.sampling.top_p)},
      {"--seed", whole(seed)},
      {"--kv", [&](const std::string& text) { return a.session.kv = text, true; }},
      {"--sled-rate", number(a.generate.sampling.sled_rate)},
      {"--input", [&](const std::string& text) { return a.input = text, !text.empty(); }},
      {"--output", [&](const std::string& text) { return a.output = text, !text.empty(); }},
      {"--batch", [&](const std::string& text) { return whole(batch)(text) && batch > 0; }},
      {"--threads", whole(threads)}};
  bool only_places = false;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (only_places || word.size() < 2 || word[0] != '-') {
      places.push_back(word);
      continue;
    }
    only_places = word == "--";
    bool* const flag = word == "--json"                   ? &a.json
                       : word == "--stream"               ? &a.stream
                       : word == "--raw"                  ? &a.raw
                       : word == "--sled"                 ? &a.generate.sampling.sled
                       : word == "--truncate"             ? &a.truncate
                       : word == "--help" || word == "-h" ? &a.help
                                                          : nullptr;
    if (flag != nullptr) *flag = true;
    a.given.insert(word);
    if (flag != nullptr || only_places) continue;
    const auto option = options.find(word);
    if (option == options.end()) return usage("there is no option " + word, "eecompile-run --help lists them");
    if (++i == words.size()) return usage(word + " has no value");
    if (!option->second(words[i]))
      return usage(word + " has the value " + words[i], "eecompile-run --help says what it takes");
  }
  if (a.help) return a;
  if (places.empty() || places.size() > 2)
    return usage("give a BUNDLE, and a PROMPT, --prompt-ids or --input", "eecompile-run --help");
  if (threads < 0 || threads > 4096 || (threads == 0 && std::count(words.begin(), words.end(), "--threads") > 0))
    return usage("--threads is not from 1 to 4096");
  a.bundle = places[0];
  if (places.size() == 2) a.prompt = places[1];
  if (a.prompt.has_value() + a.prompt_ids.has_value() + !a.input.empty() != 1)
    return usage("give either a PROMPT or --prompt-ids, or a file of prompts with --input");
  if (a.json && a.stream) return usage("--json prints one object, once it is whole", "leave --stream out");
  if (a.session.mode == "full" && !a.thresholds.empty())
    return usage("--threshold is for exits, and mode full asks none", "use --mode exact or confident");
  a.generate.sampling.seed = static_cast<std::uint64_t>(seed);
  a.open.threads = static_cast<int>(threads);
  a.batch = static_cast<std::size_t>(batch);
  return a;
}

Status check_generating(const Arguments& a) {
  if (Status status = refuse_given(a, {"--pair", "--granularity", "--truncate"}, "generates text"); !status.ok())
    return status;
  if (a.input.empty() != a.output.empty()) return usage("--input and --output go together");
  if (a.input.empty() && a.batch > 0) return usage("--batch goes with --input", "one prompt runs by itself");
  if (!a.input.empty() && (a.json || a.stream))
    return usage("--json and --stream are for one prompt", "--output has a line of JSON for each");
  return {};
}

Status refuse_given(const Arguments& arguments, std::initializer_list<const char*> options, const std::string& kind) {
  for (const char* option : options)
    if (arguments.given.count(option) > 0)
      return usage(std::string(option) + " is not for a model that " + kind, "leave the option out");
  return {};
}

Status add_thresholds(const std::vector<std::string>& values, const Bundle& bundle, SessionOptions& options) {
  const std::size_t labels = bundle.labels().size(),
                    classes = labels > 0 ? labels : static_cast<std::size_t>(bundle.model().vocab);
  std::map<std::int64_t, std::optional<Thresholds>> changes;
  const std::vector<ExitDescription> exits = bundle.exits();
  const auto exit_at = [&](std::int64_t layer) {
    return std::find_if(exits.begin(), exits.end(), [&](const ExitDescription& e) { return e.layer == layer; });
  };
  for (const std::string& value : values) {
    const std::string place = value.substr(0, value.find('=')),
                      bound = place.size() < value.size() ? value.substr(place.size() + 1) : "";
    const std::size_t colon = std::min(place.find(':'), place.size());
    const std::optional<std::int64_t> layer = integer(place.substr(0, colon));
    if (!layer || bound.empty())
      return usage("--threshold " + value + " is not LAYER[:CRITERION]=VALUE", "as in 18:max_prob=0.9");
    const auto exit = exit_at(*layer);
    if (exit == exits.end()) return usage("there is no exit at layer " + std::to_string(*layer));
    if (bound == "never") {
      changes[*layer] = std::nullopt;
      continue;
    }
    const std::string gate = gate_of(colon < place.size() ? place.substr(colon + 1) : "", *exit);
    const std::optional<double> number = real(bound);
    if (gate.empty()) return usage("--threshold " + value + " names none of the exit's gates");
    if (!number) return usage("--threshold " + value + " has no number after =");
    if (!changes[*layer]) changes[*layer] = Thresholds();
    (*changes[*layer])[gate] = *number;
  }
  for (auto& [layer, change] : changes) {
    if (!change) continue;
    const ExitDescription& exit = *exit_at(layer);
    const std::optional<Thresholds>& known = options.mode == "confident" ? exit.confident : exit.draft;
    for (const std::string& gate : exit.gates) {
      const double widest = gate == "entropy"      ? std::log(static_cast<double>(classes))
                            : gate == "saturation" ? -1
                                                   : 0;
      const auto own = known ? known->find(gate) : Thresholds::const_iterator();
      change->emplace(gate, known && own != known->end() ? own->second : widest);
    }
  }
  options.thresholds = std::move(changes);
  return {};
}

}  // namespace eecompile
