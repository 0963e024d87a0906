// A bundle's manifest and overlays, as far as a language model's runtime goes by them.
//
// Thread safety: values. Cost: a few times the JSON that they were read from.
#pragma once

#include <array>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "eecompile/status.h"
#include "eecompile/values.h"

namespace eecompile {

struct TensorInfo {
  std::string name, dtype;
  std::vector<std::int64_t> shape;   // -1 where it has a symbol
  std::vector<std::string> symbols;  // of each dimension, empty where it has a size

  // Which dimension has this symbol, or -1.
  int symbol(std::string_view name) const;
};

struct GraphInfo {
  std::string path;
  std::vector<TensorInfo> inputs, outputs;
  std::int64_t layers = 0;
};

struct RouterInfo {
  std::int64_t choices = 2, units = 0;
};

struct PredictorInfo {
  std::string head;
  std::int64_t units = 0;
};

// What moves the thresholds of max_prob and margin while decoding: CALM's decay, or FREE's fit (schedules.h).
struct ThresholdSchedule {
  bool adaptive = false;
  double tau = 4, zeta = 0.4, low = 0.3, high = 0.9;
  std::int64_t tokens = 128, points = 10, updates = 300;
};

struct ExitInfo {
  std::int64_t layer = 0, gate_units = 0;
  std::string adapter, head;
  std::vector<std::string> gates;
  std::optional<RouterInfo> router;
  std::optional<PredictorInfo> predictor;
  std::optional<ThresholdSchedule> schedule;

  bool has(std::string_view gate) const;
};

// Inputs, units and outputs of a gate that has weights.
struct GateSize {
  std::size_t inputs = 0, units = 0, outputs = 0;
};

struct HeadInfo {
  std::string name, kind;
  Ids tokens;  // of a shortlist
};

// A gate that has a step run again for a row; `weights` is the file of its think vector [D], weight [D] and bias [1].
struct CycleInfo {
  double threshold = 0;
  std::int64_t repeats = 1;
  std::string weights;
};

struct Step {
  std::size_t segment = 0, cache = 0;
  std::optional<std::size_t> exit;
  std::string factors;  // the file of this step's LoRA factors; empty where its segment takes none
  std::optional<CycleInfo> cycle;
};

// Of an encoder: kinds of tokens that it tells apart (0: none), the id whose positions are skipped.
struct EncoderInfo {
  std::int64_t types = 0;
  std::optional<std::int64_t> padding;
};

// Of an encoder-decoder: tokens of a source at most, and the token that its target begins with.
struct SourceInfo {
  std::int64_t context = 0, start = 0;
};

struct FileInfo {
  std::int64_t bytes = 0;
  std::string sha256;
};

constexpr std::array<std::string_view, 2> kDialects = {"modern", "classic"};  // of a device's graphs

// The graphs that a device's engines are made of, by the path of the manifest's graph that each stands for, with the
// same inputs and outputs; and the path of the plan for them.
struct DeviceInfo {
  std::string target, dialect, compute, cache, plan;
  std::int64_t opset = 0;
  std::map<std::string, std::string> paths;
};

struct Manifest {
  ModelInfo model;
  std::string precision, cache, task, digest;
  std::vector<std::string> kv_rules;
  std::int64_t pending_cap = 1, prefill_rows = 1, minimum_rows = 1, slack = 1, slots = 1;
  std::vector<ExitInfo> exits;
  std::vector<HeadInfo> heads;
  std::vector<Step> schedule;
  std::vector<std::int64_t> caches;  // layers of each
  GraphInfo embed, head;
  std::vector<GraphInfo> segments, exit_graphs, small_heads;
  std::vector<std::optional<GraphInfo>> kv;  // K/V-only graphs by segment, for the rule propagate
  bool tokenizer = false;
  std::vector<std::string> labels;     // of a classifier, in its order
  std::optional<EncoderInfo> encoder;  // likewise
  std::optional<SourceInfo> source;
  std::optional<GraphInfo> source_graph;  // the encoder of an encoder-decoder
  std::map<std::string, FileInfo> files;
  std::optional<DeviceInfo> device;
  std::string target;

  bool generates() const;        // whether it is a language model
  std::int64_t classes() const;  // what a head chooses from: the labels of a classifier, else the vocabulary
};

struct GateWeights {
  std::int64_t units = 0;
  std::vector<float> w1, b1, w2, b2;  // [in, U], [U], [U, out], [out]; without units w2 [in, out] and b2 alone
};
using Gates = std::map<std::string, GateWeights, std::less<>>;  // by kind: gate (the learned one), router, predictor

struct ExitPolicy {
  std::int64_t layer = 0;
  std::optional<Thresholds> confident, draft;
  Gates gates;
};

struct Policy {
  std::vector<ExitPolicy> exits;
  std::int64_t minimum_depth = 0;
  std::optional<std::int64_t> budget;
  std::string kv = "catch_up";
  std::string gates;  // digest of the exits and their gate weights (digest.py, gates_digest)
};

using Point = std::vector<std::optional<Thresholds>>;  // thresholds of each exit

struct Calibration {
  std::string precision, kv, gates, cache;
  std::int64_t pending_cap = 0;
  std::vector<Point> tested;  // the points that passed, safe ones first: the last is the chosen one; none where none is
};

// Median seconds of one pass of a graph ("segment_0", "head", ..) over so many rows.
struct PassTime {
  std::string graph;
  std::int64_t rows = 1;
  double seconds = 0;
};

// What passes took on one device.
struct Profile {
  std::vector<PassTime> passes;
};

// The manifest in `data`, with everything in range and in agreement. Refuses other formats and versions.
Result<Manifest> read_manifest(std::string_view data, const std::string& where);

// Overlays of `manifest`; `where` names the file.
Result<Policy> read_policy(std::string_view data, const Manifest& manifest, const std::string& where);
Result<Calibration> read_calibration(std::string_view data, const Manifest& manifest, const std::string& where);
Result<Profile> read_profile(std::string_view data, const Manifest& manifest, const std::string& where);

// The shapes of a segment's LoRA inputs by name, in order; nothing where one is not float32 of fixed size.
std::optional<std::vector<std::pair<std::string, std::vector<std::int64_t>>>> factor_shapes(const GraphInfo& segment);

// The size of an exit's gate of this kind; nothing where it has none. `hidden` is D.
std::optional<GateSize> gate_size(const ExitInfo& info, std::string_view kind, std::int64_t hidden);

// The exit whose router exit `number` goes by: its own, or the last before it.
std::optional<std::size_t> router_of(const std::vector<ExitInfo>& exits, std::size_t number);

// Why these are no thresholds for this exit (one for each of its gates, each in range); empty where they are.
std::string thresholds_fault(const Thresholds& thresholds, const ExitInfo& info, std::int64_t vocab);

// Why a request may not have these limits; empty where it may.
std::string limits_fault(const Manifest& manifest, std::int64_t minimum_depth,
                         const std::optional<std::int64_t>& budget);

// Why confident mode may not run as `policy` says, with the K/V rule `kv` (empty: any); empty where it may.
std::string confident_fault(const Manifest& manifest, const Policy& policy,
                            const std::vector<Calibration>& calibrations, const std::string& kv);

// Whether a calibration is of this precision, pending cap, cache type and gates, of the K/V rule `kv` (empty: any of
// the bundle's), and allows anything.
bool matches(const Calibration& calibration, const Manifest& manifest, const Policy& policy, const std::string& kv);

// The first calibration that matches, or null.
const Calibration* matching(const std::vector<Calibration>& calibrations, const Manifest& manifest,
                            const Policy& policy, const std::string& kv);

}  // namespace eecompile
