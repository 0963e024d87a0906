#include "measure.h"

#include <algorithm>
#include <chrono>
#include <optional>

#include "eecompile/contract.h"

namespace eecompile {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point began) { return std::chrono::duration<double>(Clock::now() - began).count(); }

GenerateOptions request(std::int64_t tokens) {
  GenerateOptions options;
  options.max_new_tokens = tokens;
  options.stop = Ids();  // every round has as many tokens
  return options;
}

// A session, and what is known of its mode by now.
struct Runner {
  Session session;
  Measured found;
};

Result<std::vector<Runner>> sessions(const Bundle& bundle, const std::vector<std::string>& asked) {
  std::vector<Runner> runners;
  const std::vector<std::string> all(contract::kModes.begin(), contract::kModes.end());
  for (const std::string& mode : asked.empty() ? all : asked) {
    SessionOptions options;
    options.mode = mode;
    Result<Session> session = bundle.session(options);
    if (!session.ok() && asked.empty() && session.status().code == Code::kUncalibrated) continue;
    if (!session.ok()) return session.status();
    runners.push_back({std::move(session).value(), {mode, {}, {}, {}, 0, 0}});
  }
  return runners;
}

Status run_once(Runner& runner, const MeasureOptions& options, bool counts) {
  double in_engines = 0;  // by the first token, which prefill makes
  const OnToken note = [&](const Token&) {
    if (in_engines == 0) in_engines = engine_seconds();
    return true;
  };
  const Result<Generation> done = runner.session.generate(options.prompt, request(options.tokens), note);
  in_engines = engine_seconds() - in_engines;
  if (!done.ok()) return done.status();
  if (!counts) return {};
  const Stats& stats = done->stats;
  Measured& found = runner.found;
  found.tokens_per_second.push_back(stats.tokens_per_second());
  found.prefill_seconds.push_back(stats.prefill_seconds);
  found.outside.push_back(stats.decode_seconds > 0 ? 1 - in_engines / stats.decode_seconds : 0);
  found.mean_depth = stats.mean_depth();
  found.tokens = stats.tokens;
  return {};
}

Status start(const Bundle& bundle, const MeasureOptions& options, Measurements& found) {
  Clock::time_point began = Clock::now();
  Result<Session> session = bundle.session();
  if (!session.ok()) return session.status();
  found.session_seconds = seconds_since(began);
  began = Clock::now();
  const Result<Generation> done = session->generate(options.prompt, request(1));
  found.first_token_seconds = seconds_since(began);
  return done.status();
}

}  // namespace

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

Result<Measurements> measure(const Bundle& bundle, const MeasureOptions& options) {
  if (options.rounds < 1 || options.tokens < 2)
    return Status{Code::kUsage, "there is nothing to measure", "", "ask for 1 round or more, of 2 tokens or more"};
  Measurements found;
  if (Status status = start(bundle, options, found); !status.ok()) return status;
  Result<std::vector<Runner>> runners = sessions(bundle, options.modes);
  if (!runners.ok()) return runners.status();
  for (std::int64_t round = 0; round <= options.rounds; ++round)
    for (Runner& runner : *runners)
      if (Status status = run_once(runner, options, round > 0); !status.ok()) return status;
  for (Runner& runner : *runners) found.modes.push_back(std::move(runner.found));
  return found;
}

}  // namespace eecompile
