// A bundle's manifest and overlays, as far as a language model's runtime goes by them.
//
// Thread safety: values. Cost: a few times the JSON that they were read from.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
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

struct ExitInfo {
  std::int64_t layer = 0, gate_units = 0;
  std::string adapter, head;
  std::vector<std::string> gates;

  bool has(std::string_view gate) const;
};

struct HeadInfo {
  std::string name, kind;
  Ids tokens;  // of a shortlist
};

struct Step {
  std::size_t segment = 0, cache = 0;
  std::optional<std::size_t> exit;
};

struct FileInfo {
  std::int64_t bytes = 0;
  std::string sha256;
};

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
  std::int64_t pending_cap = 1, prefill_rows = 1, minimum_rows = 1, slack = 1;
  std::vector<ExitInfo> exits;
  std::vector<HeadInfo> heads;
  std::vector<Step> schedule;
  std::vector<std::int64_t> caches;  // layers of each
  GraphInfo embed, head;
  std::vector<GraphInfo> segments, exit_graphs, small_heads;
  bool tokenizer = false;
  std::map<std::string, FileInfo> files;
  std::optional<DeviceInfo> device;
  std::string target;
  std::int64_t slots = 1;
  std::string missing;  // what the bundle needs that this runtime does not do; empty where nothing
};

struct GateWeights {
  std::int64_t units = 0;
  std::vector<float> w1, b1, w2, b2;  // [D, U], [U], [U, 1], [1]
};

struct ExitPolicy {
  std::int64_t layer = 0;
  std::optional<Thresholds> confident, draft;
  std::optional<GateWeights> gate;
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
  std::optional<Point> chosen;
};

// The manifest in `data`, with everything in range and in agreement. Refuses other formats and versions.
Result<Manifest> read_manifest(std::string_view data, const std::string& where);

// Overlays of `manifest`; `where` names the file.
Result<Policy> read_policy(std::string_view data, const Manifest& manifest, const std::string& where);
Result<Calibration> read_calibration(std::string_view data, const Manifest& manifest, const std::string& where);

// Why these are no thresholds for this exit (one for each of its gates, each in range); empty where they are.
std::string thresholds_fault(const Thresholds& thresholds, const ExitInfo& info, std::int64_t vocab);

// Why confident mode may not run as `policy` says, with the rule catch_up; empty where it may.
std::string confident_fault(const Manifest& manifest, const Policy& policy,
                            const std::vector<Calibration>& calibrations);

// Whether a calibration is of this precision, pending cap, cache type and gates, of catch_up, and allows anything.
bool matches(const Calibration& calibration, const Manifest& manifest, const Policy& policy);

}  // namespace eecompile
