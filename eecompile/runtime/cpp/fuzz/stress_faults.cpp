// Memory that runs out and reads that fall short: a status each time, nothing leaked, nothing left open.
#include <sys/resource.h>
#include <unistd.h>

#include <functional>
#include <new>
#include <optional>

#include "bundle_files.h"
#include "eecompile.h"
#include "eecompile/tokenizer.h"
#include "heap.h"
#include "reads.h"
#include "stress.h"

namespace eecompile::stress {
namespace {

using Act = std::function<std::int32_t()>;

constexpr std::int32_t kNowhere = -1;  // what tokenizing gives without memory: the one exception it may throw

// The last error as it is after a failure that no earlier one shows in.
void settle() { static_cast<void>(eecompile_open(nullptr, nullptr, nullptr)); }

// Does `act` again and again, memory running out at its first allocation, at the one `every` later, and so on.
Report starve_one(const std::string& name, const Act& act, std::int64_t every) {
  settle();
  const std::int32_t expected = act();
  settle();
  const std::int64_t before = live_blocks();
  std::int64_t times = 0, survived = 0;
  for (const bool lasting : {false, true})
    for (std::int64_t number = 1;; number += every) {
      starve(number, lasting);
      const std::int32_t code = act();
      const bool failed = spare();
      settle();
      const std::int64_t leaked = live_blocks() - before;
      const std::string where = name + ", allocation " + std::to_string(number) + (lasting ? " and all after it" : "");
      if (!failed) break;
      ++times;
      survived += code == expected;
      if (code != expected && code != EECOMPILE_INTERNAL && code != kNowhere)
        broken(where + ": code " + std::to_string(code));
      if (leaked != 0) broken(where + ": " + std::to_string(leaked) + " blocks are left");
    }
  if (act() != expected) broken(name + " is not what it was before");
  return {{"times", times}, {"survived", survived}, {"code", expected}};
}

eecompile_open_options opening(const char* onnxruntime) {
  eecompile_open_options options{};
  options.size = sizeof options;
  options.threads = 2;
  options.onnxruntime = onnxruntime;
  return options;
}

std::int32_t open_and_close(const std::string& path, const char* onnxruntime) {
  const eecompile_open_options options = opening(onnxruntime);
  eecompile_bundle* bundle = nullptr;
  const std::int32_t code = eecompile_open(path.c_str(), &options, &bundle);
  eecompile_close(bundle);
  return code;
}

std::int32_t generate(const eecompile_bundle* bundle, const char* mode) {
  eecompile_session_options how{};
  how.size = sizeof how;
  how.mode = mode;
  eecompile_session* session = nullptr;
  if (const std::int32_t code = eecompile_session_new(bundle, &how, &session); code != 0) return code;
  eecompile_generate_options options{};
  options.size = sizeof options;
  options.max_new_tokens = 5;
  options.temperature = 0.7;
  options.top_p = 0.9;
  const std::int64_t prompt[] = {3, 1, 4, 1, 5};
  const std::int32_t code = eecompile_generate(session, prompt, 5, &options, nullptr, nullptr, nullptr);
  eecompile_session_free(session);
  return code;
}

std::int32_t tokenize(const std::string& file) {
  try {
    const Result<Tokenizer> tokenizer = Tokenizer::open(file);
    if (!tokenizer.ok()) return static_cast<std::int32_t>(tokenizer.status().code);
    static_cast<void>(tokenizer->decode(tokenizer->encode("the  other\xC3\xA9 \xF0\x9F\x98\x80\xFF")));
    return 0;
  } catch (const std::bad_alloc&) {
    return kNowhere;
  }
}

std::optional<std::string> digest_of(const std::string& root) {
  const Result<BundleFiles> read = read_bundle(root, Integrity::kHash);
  return read.ok() ? std::optional(read->manifest.digest) : std::nullopt;
}

// Every number of descriptors from none to plenty.
void run_out_of_descriptors(const std::string& root) {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  const rlim_t plenty = limit.rlim_cur;
  for (std::int64_t free = 0; free < 12; ++free) {
    limit.rlim_cur = static_cast<rlim_t>(free);
    setrlimit(RLIMIT_NOFILE, &limit);
    const Result<BundleFiles> read = read_bundle(root, Integrity::kHash);
    if (!read.ok() && read.status().code != Code::kIntegrity) broken("no descriptors: " + read.status().text());
  }
  limit.rlim_cur = plenty;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

Report starve_all(const Options& options) {
  const std::string root = options.places[0], library = options.text("onnxruntime"), file = options.text("tokenizer");
  const std::int64_t every = options.integer("every", 1);
  Report report;
  report["read"] = starve_one("reading", [&] { return open_and_close(root, "/nowhere/libonnxruntime.so.1"); }, every);
  if (!file.empty()) report["tokenize"] = starve_one("tokenizing", [&] { return tokenize(file); }, every);
  if (library.empty()) return report;
  const eecompile_open_options opened = opening(library.c_str());
  eecompile_bundle* bundle = nullptr;
  if (eecompile_open(root.c_str(), &opened, &bundle) != 0) broken(eecompile_last_error());
  for (const char* mode : {"full", "exact", "confident"})
    report[mode] = starve_one(mode, [&] { return generate(bundle, mode); }, every);
  report["open"] = starve_one("opening", [&] { return open_and_close(root, library.c_str()); },
                              options.integer("every-open", every));
  eecompile_close(bundle);
  return report;
}

Report shorten_all(const Options& options) {
  const std::string root = options.places[0], file = options.text("tokenizer");
  const std::optional<std::string> expected = digest_of(root);
  if (!expected) broken("the bundle cannot be read");
  for (const std::int64_t most : {1, 7, 4095}) {
    shorten_reads(most);
    if (digest_of(root) != expected) broken("reads of " + std::to_string(most) + " bytes make another bundle");
    if (!file.empty() && tokenize(file) != 0) broken("reads of " + std::to_string(most) + " bytes: another tokenizer");
  }
  shorten_reads(0);
  const std::int64_t before = descriptors();
  std::int64_t times = 0;
  for (const Act& act : {Act([&] { return open_and_close(root, "/nowhere"); }),
                         Act([&] { return file.empty() ? EECOMPILE_INTEGRITY : tokenize(file); })})
    for (std::int64_t number = 1;; ++number) {
      fail_read(number);
      const std::int32_t code = act();
      if (!read_failed()) break;
      ++times;
      if (code != EECOMPILE_INTEGRITY) broken("read " + std::to_string(number) + " fails: code " + std::to_string(code));
    }
  fail_read(0);
  if (descriptors() != before) broken("failed reads leave descriptors open");
  run_out_of_descriptors(root);
  if (digest_of(root) != expected) broken("the bundle is not what it was before");
  return {{"failed", times}};
}

}  // namespace eecompile::stress
