// requests BUNDLE DECISION PLUGIN: a session for each line that comes in, and what it says of its prompts, as JSON.
//
//     MODE PENDING_CAP MAX_NEW_TOKENS THRESHOLDS PROMPTS, as in
//     exact 2 24 1:learned=0.4,1:max_prob=0.02,3:never 5,6,7;9@0.9;9,9
//
// A prompt with @T is sampled at that temperature; one with ! is cancelled after its third token. THRESHOLDS may be -.
#include <cstdio>
#include <iostream>
#include <sstream>

#include "eecompile/bundle.h"

namespace {

using namespace eecompile;

std::vector<std::string> parts(const std::string& text, char between) {
  std::vector<std::string> found;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, between);) found.push_back(part);
  return found;
}

void add_thresholds(const std::string& text, SessionOptions& options) {
  if (text == "-") return;
  for (const std::string& one : parts(text, ',')) {
    const std::size_t colon = one.find(':'), equals = one.find('=');
    std::optional<Thresholds>& own = options.thresholds[std::stol(one.substr(0, colon))];
    if (equals == one.npos) continue;  // never
    if (!own) own = Thresholds();
    (*own)[one.substr(colon + 1, equals - colon - 1)] = std::stod(one.substr(equals + 1));
  }
}

std::string list(const std::vector<std::int64_t>& values) {
  std::string text;
  for (const std::int64_t value : values) text += (text.empty() ? "" : ", ") + std::to_string(value);
  return "[" + text + "]";
}

Status say(Session& session, const std::string& prompt, std::int64_t count) {
  GenerateOptions request;
  request.max_new_tokens = count;
  request.stop = Ids{};
  if (const std::size_t at = prompt.find('@'); at != prompt.npos)
    request.sampling.temperature = std::stod(prompt.substr(at + 1));
  request.sampling.seed = 3;
  Ids ids;
  for (const std::string& id : parts(prompt.substr(0, prompt.find_first_of("@!")), ',')) ids.push_back(std::stol(id));
  int left = prompt.back() == '!' ? 3 : -1;
  const Result<Generation> made = session.generate(ids, request, [&](const Token&) { return --left != 0; });
  if (!made.ok()) return made.status();
  const Stats& s = made->stats;
  std::printf("{\"ids\": %s, \"depths\": %s, \"counts\": %s, \"stopped\": \"%s\", \"decision\": \"%s\"}\n",
              list(made->ids).c_str(), list(made->exit_layers).c_str(),
              list({s.drafted, s.rejected, s.declined, s.segment_passes, s.layer_rows}).c_str(),
              s.stop_reason.c_str(), session.decision().c_str());
  return {};
}

Status answer(const Bundle& bundle, const std::string& line) {
  const std::vector<std::string> words = parts(line, ' ');
  SessionOptions options;
  options.mode = words[0];
  options.pending_cap = std::stol(words[1]);
  add_thresholds(words[3], options);
  Result<Session> session = bundle.session(options);
  if (!session.ok()) return session.status();
  for (const std::string& prompt : parts(words[4], ';'))
    if (Status status = say(*session, prompt, std::stol(words[2])); !status.ok()) return status;
  return {};
}

int run(char** words) {
  OpenOptions options;
  options.backend = "tensorrt";
  options.decision = words[2];
  options.plugin = words[3];
  const Result<Bundle> bundle = Bundle::open(words[1], options);
  Status status = bundle.status();
  for (std::string line; status.ok() && std::getline(std::cin, line);) status = answer(*bundle, line);
  if (!status.ok()) std::fprintf(stderr, "error %s\n", status.text().c_str());
  return status.exit_status();
}

}  // namespace

int main(int, char** words) { return run(words); }
