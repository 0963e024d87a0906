#include <exception>

#include "c_parts.h"

using namespace eecompile;

namespace {

static_assert(static_cast<int>(Code::kOk) == EECOMPILE_OK && static_cast<int>(Code::kUsage) == EECOMPILE_USAGE,
              "codes are the same");
static_assert(static_cast<int>(Code::kIntegrity) == EECOMPILE_INTEGRITY &&
                  static_cast<int>(Code::kInternal) == EECOMPILE_INTERNAL,
              "codes are the same");

thread_local std::string last_error;

}  // namespace

namespace eecompile {

std::map<std::int64_t, std::optional<Thresholds>> thresholds_of(const eecompile_threshold* given, std::size_t count) {
  std::map<std::int64_t, std::optional<Thresholds>> found;
  for (std::size_t i = 0; given != nullptr && i < count; ++i) {
    std::optional<Thresholds>& own = found[given[i].layer];
    if (given[i].criterion == nullptr) continue;
    if (!own) own = Thresholds();
    (*own)[given[i].criterion] = given[i].value;
  }
  return found;
}

SessionOptions options_of(const eecompile_session_options& given) {
  SessionOptions options;
  if (given.mode != nullptr) options.mode = given.mode;
  options.pending_cap = unless_zero(given.pending_cap);
  options.minimum_depth = unless_zero(given.minimum_depth);
  options.budget = unless_zero(given.budget);
  options.thresholds = thresholds_of(given.thresholds, given.threshold_count);
  if (given.kv != nullptr) options.kv = given.kv;
  return options;
}

GenerateOptions options_of(const eecompile_generate_options& given) {
  GenerateOptions options;
  options.max_new_tokens = unless_zero(given.max_new_tokens);
  const double top_p = given.top_p == 0 ? 1 : given.top_p, rate = given.sled_rate == 0 ? 2 : given.sled_rate;
  options.sampling = {given.temperature, given.top_k, top_p, given.seed, given.sled_rate != 0, rate};
  if (given.stop != nullptr) options.stop = Ids(given.stop, given.stop + given.stop_count);
  return options;
}

eecompile_stats stats_of(const Stats& s) {
  eecompile_stats own{};
  own.size = sizeof own;
  own.prompt_tokens = s.prompt_tokens, own.tokens = s.tokens, own.drafted = s.drafted, own.rejected = s.rejected,
  own.declined = s.declined;
  own.segment_passes = s.segment_passes, own.layer_rows = s.layer_rows;
  own.prefill_seconds = s.prefill_seconds, own.decode_seconds = s.decode_seconds, own.mean_depth = s.mean_depth();
  s.stop_reason.copy(own.stop_reason, sizeof own.stop_reason - 1);
  return own;
}

std::int32_t out_of_memory() noexcept {
  last_error = "out of memory";  // short enough for any string to hold without memory
  return EECOMPILE_INTERNAL;
}

std::int32_t fail(const Status& status) noexcept {
  try {
    last_error = status.text();
    return static_cast<std::int32_t>(status.code);
  } catch (const std::exception&) {
    return out_of_memory();
  }
}

std::int32_t fail(const char* what) noexcept {
  try {
    return fail(Status{Code::kUsage, what, "", ""});
  } catch (const std::exception&) {
    return out_of_memory();
  }
}

}  // namespace eecompile

std::int32_t eecompile_abi(void) { return EECOMPILE_ABI; }

const char* eecompile_last_error(void) { return last_error.c_str(); }

std::int32_t eecompile_open(const char* path, const eecompile_open_options* options, eecompile_bundle** bundle) {
  if (path == nullptr || bundle == nullptr) return fail("there is no path, or nowhere to put the bundle");
  *bundle = nullptr;
  if (sizeless(options)) return fail(kNoSize);
  return guarded([&]() -> std::int32_t {
    const eecompile_open_options given = known(options);
    OpenOptions own;
    own.threads = given.threads;
    own.integrity = given.sizes_only != 0 ? Integrity::kSize : Integrity::kHash;
    if (given.onnxruntime != nullptr) own.onnxruntime = given.onnxruntime;
    if (given.backend != nullptr) own.backend = given.backend;
    if (given.plugin != nullptr) own.plugin = given.plugin;
    if (given.decision != nullptr) own.decision = given.decision;
    Result<Bundle> opened = Bundle::open(path, own);
    if (!opened.ok()) return fail(opened.status());
    std::vector<std::string> labels = opened->labels();
    *bundle = new eecompile_bundle{std::move(opened).value(), std::move(labels)};
    return EECOMPILE_OK;
  });
}

const char* eecompile_label(const eecompile_bundle* bundle, size_t number) {
  return bundle == nullptr || number >= bundle->labels.size() ? nullptr : bundle->labels[number].c_str();
}

void eecompile_close(eecompile_bundle* bundle) { delete bundle; }

std::int32_t eecompile_session_new(const eecompile_bundle* bundle, const eecompile_session_options* options,
                                   eecompile_session** session) {
  if (bundle == nullptr || session == nullptr) return fail("there is no bundle, or nowhere to put the session");
  *session = nullptr;
  if (sizeless(options)) return fail(kNoSize);
  return guarded([&]() -> std::int32_t {
    Result<Session> made = bundle->bundle.session(options_of(known(options)));
    if (!made.ok()) return fail(made.status());
    *session = new eecompile_session{std::move(made).value()};
    return EECOMPILE_OK;
  });
}

void eecompile_session_free(eecompile_session* session) { delete session; }

std::int32_t eecompile_generate(eecompile_session* session, const int64_t* prompt, size_t count,
                                const eecompile_generate_options* options, eecompile_on_token on_token, void* context,
                                eecompile_stats* stats) {
  if (session == nullptr || lacks(prompt, count)) return fail("there is no session or no prompt");
  if (sizeless(options, stats)) return fail(kNoSize);
  return guarded([&]() -> std::int32_t {
    const auto tell_token = [&](const Token& token) { return on_token(context, token.id, token.exit_layer) != 0; };
    const Ids ids(prompt, prompt + count);
    Result<Generation> found = session->session.generate(ids, options_of(known(options)),
                                                         on_token == nullptr ? OnToken() : OnToken(tell_token));
    if (!found.ok()) return fail(found.status());
    if (stats != nullptr) tell(stats_of(found->stats), stats);
    return EECOMPILE_OK;
  });
}
