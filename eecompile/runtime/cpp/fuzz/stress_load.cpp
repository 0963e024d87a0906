// Many sessions at once, many tokens, many openings: the same tokens, and nothing that grows.
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "eecompile/bundle.h"
#include "eecompile/tokenizer.h"
#include "stress.h"

namespace eecompile::stress {
namespace {

constexpr int kPrompts = 8;

Bundle opened(const Options& options) {
  OpenOptions how;
  how.threads = 2, how.integrity = Integrity::kSize, how.onnxruntime = options.text("onnxruntime", how.onnxruntime.c_str());
  Result<Bundle> bundle = Bundle::open(options.places[0], how);
  if (!bundle.ok()) broken(bundle.status().text());
  return std::move(bundle).value();
}

Session session_of(const Bundle& bundle, const Options& options) {
  SessionOptions how;
  how.mode = options.text("mode", "exact");
  Result<Session> session = bundle.session(how);
  if (!session.ok()) broken(session.status().text());
  return std::move(session).value();
}

Ids prompt_of(const Bundle& bundle, int which) {
  Ids ids;
  for (int i = 0; i <= 3 * which; ++i) ids.push_back((7 * which + 3 * i) % bundle.model().vocab);
  return ids;
}

Ids generated(Session& session, const Ids& prompt, std::int64_t tokens, int which) {
  GenerateOptions options;
  options.max_new_tokens = tokens;
  options.stop = Ids();
  if (which % 2 == 1) options.sampling = {0.8, 9, 0.9, static_cast<std::uint64_t>(which)};
  const Result<Generation> found = session.generate(prompt, options);
  if (!found.ok()) broken(found.status().text());
  return found->ids;
}

// Without pages of files: the code of ONNX Runtime becomes resident as it first runs, some of it seconds later, in a
// thread of its own.
std::int64_t own_kilobytes() {
  std::ifstream file("/proc/self/statm");
  std::int64_t size = 0, resident = 0, shared = 0;
  file >> size >> resident >> shared;
  return (resident - shared) * sysconf(_SC_PAGESIZE) / 1024;
}

}  // namespace

Report run_sessions(const Options& options) {
  const Bundle bundle = opened(options);
  const std::int64_t count = options.integer("sessions", 64), tokens = options.integer("tokens", 12);
  std::vector<Ids> expected;
  for (int which = 0; which < kPrompts; ++which) {
    Session session = session_of(bundle, options);
    expected.push_back(generated(session, prompt_of(bundle, which), tokens, which));
  }
  const std::string file = bundle.tokenizer();
  std::optional<Tokenizer> tokenizer;
  if (!file.empty())
    if (Result<Tokenizer> read = Tokenizer::open(file); read.ok()) tokenizer = *read;
  std::atomic<std::int64_t> ready{0}, done{0};
  const auto work = [&](int number) {
    ++ready;
    while (ready < count) std::this_thread::yield();
    const Bundle own = bundle;
    Session session = session_of(own, options);
    for (int round = 0; round < 2; ++round) {
      const int which = (number + round) % kPrompts;
      if (generated(session, prompt_of(own, which), tokens, which) != expected[static_cast<std::size_t>(which)])
        broken("session " + std::to_string(number) + " has other tokens than it has alone");
      if (tokenizer) static_cast<void>(tokenizer->decode(tokenizer->encode("the number " + std::to_string(number))));
      ++done;
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(work, i);
  for (std::thread& thread : threads) thread.join();
  return {{"requests", done.load()}};
}

Report run_tokens(const Options& options) {
  const Bundle bundle = opened(options);
  Session session = session_of(bundle, options);
  const std::int64_t wanted = options.integer("tokens", 100000), context = bundle.model().context;
  std::int64_t made = 0, early = 0;
  for (int request = 0; made < wanted; ++request) {
    const Ids prompt = prompt_of(bundle, request % kPrompts);
    const auto left = context - static_cast<std::int64_t>(prompt.size()) + 1;
    made += static_cast<std::int64_t>(generated(session, prompt, request % 3 == 0 ? left : left / 2, request).size());
    if (early == 0 && 5 * made >= wanted) early = own_kilobytes();
  }
  return {{"tokens", made}, {"own_early_kb", early}, {"own_late_kb", own_kilobytes()}};
}

Report run_opens(const Options& options) {
  const std::int64_t count = options.integer("count", 10000);
  std::int64_t open_early = 0, early = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    if (i == count / 10) open_early = descriptors(), early = own_kilobytes();
    const Bundle bundle = opened(options);
    Session session = session_of(bundle, options);
    static_cast<void>(generated(session, {1, 2}, 1, 0));
  }
  return {{"opened", count},
          {"descriptors_early", open_early},
          {"descriptors_late", descriptors()},
          {"own_early_kb", early},
          {"own_late_kb", own_kilobytes()}};
}

}  // namespace eecompile::stress
