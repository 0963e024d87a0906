// Overlays: what a policy may say, and in confident mode none bolder than a matching calibration (ranges.py).
#include <algorithm>
#include <cmath>
#include <cstring>

#include "eecompile/contract.h"
#include "json.h"
#include "manifest.h"
#include "sha256.h"

namespace eecompile {
namespace {

constexpr double kHuge = 1e308;
constexpr std::array<std::string_view, 4> kRules = {"catch_up", "propagate", "selected", "none"};
constexpr std::array<std::string_view, 2> kMethods = {"learn-then-test", "conformal-risk-control"};
constexpr std::string_view kRestore = "restore it from a copy of the bundle, or build the bundle again";

std::pair<double, double> criterion_range(const std::string& criterion, std::int64_t vocab) {
  if (criterion == "entropy") return {0.0, std::log(static_cast<double>(vocab))};
  if (criterion == "fixed" || criterion == "never") return {0.0, 0.0};
  return {0.0, 1.0};
}

std::optional<Thresholds> thresholds_from(const Json& value, const std::string& path, std::string& fault) {
  if (value.is_null()) return std::nullopt;
  Fields f(value, path, fault);
  Thresholds found;
  if (value.is_object())
    for (const auto& [criterion, bound] : value.items()) found[criterion] = f.number(criterion.c_str(), -kHuge, kHuge);
  return found;
}

// float32 little-endian in base64; nothing where it is not `count` finite numbers.
std::optional<std::vector<float>> decoded(std::string_view text, std::size_t count) {
  if (text.size() != (4 * count + 2) / 3 * 4) return std::nullopt;
  std::string bytes;
  bytes.reserve(4 * count);
  unsigned held = 0, bits = 0;
  std::size_t end = text.size();
  while (end > 0 && text[end - 1] == '=' && text.size() - end < 2) --end;
  for (std::size_t i = 0; i < end; ++i) {
    static constexpr std::string_view kLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const std::size_t letter = kLetters.find(text[i]);
    if (letter == kLetters.npos) return std::nullopt;
    held = (held << 6 | static_cast<unsigned>(letter)) & 0xFFFFFF;
    if ((bits += 6) < 8) continue;
    bits -= 8;
    bytes += static_cast<char>(held >> bits & 0xFF);
  }
  if (bytes.size() != 4 * count) return std::nullopt;
  std::vector<float> values(count);
  if (count > 0) std::memcpy(values.data(), bytes.data(), bytes.size());
  const bool finite = std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
  return finite ? std::optional(values) : std::nullopt;
}

std::optional<GateWeights> gate_from(const Json& value, const ExitInfo& info, std::int64_t hidden,
                                     const std::string& path, std::string& fault) {
  if (value.is_null()) {
    if (info.gate_units > 0 && fault.empty()) fault = path + ": no weights where the bundle has that gate";
    return std::nullopt;
  }
  Fields f(value, path, fault);
  GateWeights g;
  g.units = f.integer("units", 0, 4096);
  if (g.units != info.gate_units || g.units == 0) f.fail("units", "is not the width of the bundle's gate");
  const auto units = static_cast<std::size_t>(info.gate_units), width = static_cast<std::size_t>(hidden);
  const auto part = [&](const char* key, std::size_t count) {
    auto found = decoded(f.text(key, static_cast<std::size_t>(contract::kMaxOverlayBytes)), count);
    if (!found) f.fail(key, "is not base64 of " + std::to_string(count) + " finite numbers");
    return found.value_or(std::vector<float>());
  };
  g.w1 = part("w1", width * units);
  g.b1 = part("b1", units);
  g.w2 = part("w2", units);
  g.b2 = part("b2", 1);
  f.finish();
  return g;
}

ExitPolicy exit_from(const Json& value, const Manifest& m, const ExitInfo& info, std::string& fault) {
  const std::string path = "exit " + std::to_string(info.layer);
  Fields f(value, path, fault);
  ExitPolicy e;
  e.layer = f.integer("layer", 0, contract::kMaxLayers);
  if (e.layer != info.layer) f.fail("layer", "is not where the bundle has the exit");
  e.confident = thresholds_from(f.any("confident"), path + ".confident", fault);
  e.draft = thresholds_from(f.any("draft"), path + ".draft", fault);
  e.gate = gate_from(f.any("gate"), info, m.model.hidden, path + ".gate", fault);
  for (const char* other : {"router", "predictor"})
    if (f.has(other)) f.fail(other, "belongs to a gate that the exit does not have");
  f.skip("reason");
  f.finish();
  for (const auto* thresholds : {&e.confident, &e.draft}) {
    if (!*thresholds || !fault.empty()) continue;
    if (const std::string reason = thresholds_fault(**thresholds, info, m.model.vocab); !reason.empty())
      f.fail("", reason);
  }
  return e;
}

// Reads what every overlay has, and checks that it is of this core and as it was written.
Status check_overlay(Fields& f, std::string_view data, const Manifest& m, std::string_view kind, std::string& fault,
                     const std::string& where) {
  const std::string core = f.digest("core"), digest = f.digest("digest");
  f.choice("kind", std::array<std::string_view, 1>{kind}, kind);
  f.finish();
  if (!fault.empty()) return damaged("does not follow the schema: " + fault, where);
  if (document_digest(data) != digest)
    return damaged("changed by hand or damaged: it does not agree with its own digest", where);
  if (core != m.digest) return damaged("made for another build: it names another core", where, kRestore);
  return {};
}

// What a calibration was measured with (digest.py, gates_digest), in the words of manifest and policy.
std::string gates_digest(const Manifest& m, const Json& policy_exits) {
  Json all = Json::array();
  for (std::size_t i = 0; i < m.exits.size(); ++i) {
    const ExitInfo& e = m.exits[i];
    const Json& said = policy_exits[i];
    Json one = {{"adapter", e.adapter}, {"gate_units", e.gate_units}, {"gates", e.gates}, {"layer", e.layer}};
    one["weights"] = said.contains("gate") ? said["gate"] : Json();
    if (e.head != contract::kFullHead) one["head"] = e.head;
    all.push_back(std::move(one));
  }
  return sha256(all.dump());
}

}  // namespace

std::string thresholds_fault(const Thresholds& thresholds, const ExitInfo& info, std::int64_t vocab) {
  if (thresholds.size() != info.gates.size()) return "thresholds for other gates than the exit has";
  for (const auto& [criterion, value] : thresholds) {
    if (!info.has(criterion)) return "a threshold for " + criterion + ", which is not a gate of the exit";
    const auto [low, high] = criterion_range(criterion, vocab);
    if (!(low <= value && value <= high)) return criterion + " " + std::to_string(value) + " is out of range";
  }
  return "";
}

Result<Policy> read_policy(std::string_view data, const Manifest& m, const std::string& where) {
  Result<Json> document = parse_object(data, where);
  if (!document.ok()) return document.status();
  std::string fault;
  Fields f(*document, "", fault);
  Policy policy;
  const Json& exits = f.list("exits", contract::kMaxExits);
  if (exits.size() != m.exits.size()) f.fail("exits", "differ in number from the bundle's");
  for (std::size_t i = 0; i < exits.size() && fault.empty(); ++i)
    policy.exits.push_back(exit_from(exits[i], m, m.exits[i], fault));
  policy.minimum_depth = f.integer_or("minimum_depth", 0, m.model.layers, 0);
  if (f.has("budget")) policy.budget = f.integer("budget", 1, std::int64_t{1} << 62);
  policy.kv = f.choice("kv", kRules, "catch_up");
  if (std::find(m.kv_rules.begin(), m.kv_rules.end(), policy.kv) == m.kv_rules.end())
    f.fail("kv", "is a rule that the bundle has no graphs for");
  if (Status status = check_overlay(f, data, m, "policy", fault, where); !status.ok()) return status;
  policy.gates = gates_digest(m, exits);
  return policy;
}

Result<Calibration> read_calibration(std::string_view data, const Manifest& m, const std::string& where) {
  Result<Json> document = parse_object(data, where);
  if (!document.ok()) return document.status();
  std::string fault;
  Fields f(*document, "", fault);
  Calibration c;
  c.precision = f.choice("precision", contract::kPrecisions);
  c.cache = f.choice("cache", contract::kCaches, "fp32");
  c.kv = f.choice("kv", kRules);
  c.pending_cap = f.integer("pending_cap", 1, 1024);
  c.gates = f.digest("gates");
  const std::string method = f.choice("method", kMethods);
  const double documents = static_cast<double>(f.integer("documents", 1, std::int64_t{1} << 40));
  const double risk = f.number("risk", 0, 1);
  const bool tests = method == kMethods[0];
  const double error = f.has("error") ? f.number("error", 0, 1) : 0;
  if (tests != f.has("error")) f.fail("error", "belongs to learn-then-test, and to it alone");
  const Json& path = f.list("path", contract::kMaxLayers);
  const std::int64_t chosen = f.integer_or("chosen", 0, contract::kMaxLayers, -1);
  if (chosen >= static_cast<std::int64_t>(path.size())) f.fail("chosen", "is a point that is not there");
  for (std::size_t number = 0; number < path.size() && fault.empty(); ++number) {
    Fields point(path[number], "path." + std::to_string(number), fault);
    const Json& thresholds = point.list("thresholds", contract::kMaxExits);
    if (thresholds.size() != m.exits.size()) point.fail("thresholds", "differ in number from the bundle's exits");
    Point found;
    for (std::size_t i = 0; i < m.exits.size() && fault.empty(); ++i) {
      found.push_back(thresholds_from(thresholds[i], point.path("thresholds"), fault));
      if (!found.back() || !fault.empty()) continue;
      if (const std::string reason = thresholds_fault(*found.back(), m.exits[i], m.model.vocab); !reason.empty())
        point.fail("thresholds", reason);
    }
    const double mean = point.number("risk", 0, 1), p = point.has("p_value") ? point.number("p_value", 0, 1) : 2;
    if (static_cast<std::int64_t>(number) != chosen || !fault.empty()) continue;
    if (tests ? p > error : mean > ((documents + 1) * risk - 1) / documents)
      point.fail("risk", "is above what the calibration promises");
    c.chosen = std::move(found);
  }
  for (const char* other : {"loss", "tokens", "data", "traces", "draft_traces", "draft", "splits"}) f.skip(other);
  if (Status status = check_overlay(f, data, m, "calibration", fault, where); !status.ok()) return status;
  return c;
}

bool matches(const Calibration& c, const Manifest& m, const Policy& policy) {
  return c.precision == m.precision && c.pending_cap == m.pending_cap && c.cache == m.cache &&
         c.gates == policy.gates && c.kv == "catch_up" && c.chosen.has_value();
}

std::string confident_fault(const Manifest& m, const Policy& policy, const std::vector<Calibration>& calibrations) {
  const auto closed = [](const ExitPolicy& e) { return !e.confident.has_value(); };
  if (std::all_of(policy.exits.begin(), policy.exits.end(), closed)) return "";
  std::string first = "confident thresholds without a calibration of this precision, K/V rule, pending cap and gates";
  bool found = false;
  for (const Calibration& c : calibrations) {
    if (!matches(c, m, policy)) continue;
    std::string bold;
    for (std::size_t i = 0; i < policy.exits.size() && bold.empty(); ++i) {
      const ExitPolicy& e = policy.exits[i];
      if (!e.confident) continue;
      if (!(*c.chosen)[i])
        bold = "exit " + std::to_string(e.layer) +
               " has no calibrated threshold, so that it may not exit in confident mode";
      for (const auto& [criterion, value] : *e.confident) {
        if (!bold.empty()) break;
        const auto allowed = (*c.chosen)[i]->find(criterion);
        const bool inside = allowed != (*c.chosen)[i]->end() &&
                            (criterion == "entropy" ? value <= allowed->second : value >= allowed->second);
        if (!inside)
          bold = criterion + " at exit " + std::to_string(e.layer) + " is bolder than the calibrated threshold";
      }
    }
    if (bold.empty()) return "";
    if (!found) first = "bolder than calibrated: " + bold;
    found = true;
  }
  return first;
}

}  // namespace eecompile
