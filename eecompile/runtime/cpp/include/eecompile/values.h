// What a request is made of and what it gives.
//
// Thread safety: values, as safe as the containers they hold.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace eecompile {

using Ids = std::vector<std::int64_t>;
using Thresholds = std::map<std::string, double>;  // criterion -> threshold; `fixed` and `never` carry 0

// What opening a bundle took, in seconds: reading and checking its files, and loading its graphs into engines.
struct OpenSeconds {
  double files = 0, engines = 0;
};

// What a runtime knows of the model; `context` in tokens.
struct ModelInfo {
  std::string family;
  std::int64_t layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, vocab = 0, context = 0;
  std::optional<std::int64_t> bos;
  Ids eos;
};

// An exit after `layer` layers: its gates, and the policy's thresholds in confident mode and for drafts of exact mode
// (nothing: it stays closed).
struct ExitDescription {
  std::int64_t layer = 0;
  std::vector<std::string> gates;
  std::optional<Thresholds> confident, draft;
};

// temperature 0 is greedy. top_k 0 and top_p 1 keep every token. The same seed gives the Python runtime's tokens. sled:
// choose from logits that the exits have evolved at `sled_rate` (Zhang et al. 2024), in mode full only.
struct Sampling {
  double temperature = 0;
  std::int64_t top_k = 0;
  double top_p = 1;
  std::uint64_t seed = 0;
  bool sled = false;
  double sled_rate = 2;

  bool greedy() const { return temperature == 0; }
};

// How a session runs its requests; what is not given is the policy's or the bundle's.
//
// mode: "full", "confident" (calibrated, lossy) or "exact" (the full model's tokens, sooner). pending_cap: tokens that
// may wait, at most the bundle's. minimum_depth: layers that every token runs, at least the policy's. budget:
// layer-rows that a request may spend, at most the policy's. thresholds: by exit layer, in place of the policy's
// (nullopt closes the exit); confident mode takes only what the calibration allows. kv: the rule for skipped layers,
// catch_up, or in confident mode another of the bundle's.
struct SessionOptions {
  std::string mode = "full";
  std::optional<std::int64_t> pending_cap = {}, minimum_depth = {}, budget = {};
  std::map<std::int64_t, std::optional<Thresholds>> thresholds = {};
  std::optional<std::string> kv = {};
};

// An emitted token: its id and the layers that ran before it was emitted (exact mode: before it was drafted).
struct Token {
  std::int64_t id = 0;
  std::int64_t exit_layer = 0;
};

// Called for every token as it becomes certain, in the thread that generates; false ends the request ("cancelled").
using OnToken = std::function<bool(const Token&)>;

// max_new_tokens: default as many as the context holds. stop: ids that end the text, themselves emitted (default: the
// model's end-of-sequence ids).
struct GenerateOptions {
  std::optional<std::int64_t> max_new_tokens;
  Sampling sampling;
  std::optional<Ids> stop;
};

// What a request cost. Seconds are wall time in here, not the callback's. `layer_rows` counts its rows through layers,
// catch-up included, `segment_passes` the passes, `declined` the heads that ran for an exit that did not fire.
struct Stats {
  std::int64_t prompt_tokens = 0, tokens = 0, drafted = 0, rejected = 0, declined = 0, segment_passes = 0,
               layer_rows = 0;
  double prefill_seconds = 0, decode_seconds = 0;
  std::map<std::int64_t, std::int64_t> exit_layers;  // tokens by depth
  std::string stop_reason;                           // "stop", "length", "budget", "cancelled"; of a batch also "error"

  // Decoding speed after the first token, which prefill pays for.
  double tokens_per_second() const {
    return tokens > 1 && decode_seconds > 0 ? static_cast<double>(tokens - 1) / decode_seconds : 0;
  }

  // Mean layers run before a token was emitted.
  double mean_depth() const {
    std::int64_t sum = 0;
    for (const auto& [depth, count] : exit_layers) sum += depth * count;
    return static_cast<double>(sum) / static_cast<double>(tokens > 0 ? tokens : 1);
  }
};

// A request that is over.
struct Generation {
  Ids ids;
  std::vector<std::int64_t> exit_layers;
  Stats stats;
};

}  // namespace eecompile
