// Overlays: what a policy may say, and in confident mode none bolder than a matching calibration (ranges.py).
#include <algorithm>
#include <cmath>

#include "eecompile/contract.h"
#include "gates_digest.h"
#include "manifest_parts.h"

namespace eecompile {
namespace {

constexpr double kHuge = 1e308;
constexpr double kMostDelta = 1e30;
constexpr std::array<std::string_view, 4> kRules = {"catch_up", "propagate", "selected", "none"};
constexpr std::array<std::string_view, 2> kMethods = {"learn-then-test", "conformal-risk-control"};

bool fires_below(const std::string& criterion) { return criterion == "entropy" || criterion == "delta"; }

std::pair<double, double> criterion_range(const std::string& criterion, std::int64_t vocab) {
  if (criterion == "entropy") return {0.0, std::log(static_cast<double>(vocab))};
  if (criterion == "delta") return {0.0, kMostDelta};
  if (criterion == "fixed" || criterion == "never") return {0.0, 0.0};
  if (criterion == "saturation") return {-1.0, 1.0};
  if (criterion == "patience") return {0.0, static_cast<double>(contract::kMaxExits)};
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
  std::vector<float> values(count);
  auto* const bytes = reinterpret_cast<unsigned char*>(values.data());
  std::size_t made = 0;
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
    if (made == 4 * count) return std::nullopt;
    bytes[made++] = static_cast<unsigned char>(held >> bits & 0xFF);
  }
  if (made != 4 * count) return std::nullopt;
  const bool finite = std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
  return finite ? std::optional(std::move(values)) : std::nullopt;
}

// The weights of one gate, which has to be there where the exit has that gate (gates.py).
void read_gate(const Json& value, const char* kind, const ExitInfo& info, std::int64_t hidden, const std::string& path,
               std::string& fault, Gates& gates) {
  const std::optional<GateSize> size = gate_size(info, kind, hidden);
  if (value.is_null() != !size && fault.empty())
    fault = path + (size ? ": no weights where the bundle has that gate" : ": weights of a gate that the exit lacks");
  if (value.is_null() || !size) return;
  Fields f(value, path, fault);
  GateWeights g;
  g.units = f.integer("units", 0, 4096);
  if (g.units != static_cast<std::int64_t>(size->units)) f.fail("units", "is not the width of the bundle's gate");
  const auto part = [&](const char* key, std::size_t count) {
    const Json said = f.any(key);
    const std::string meant = said.is_string() && !said.is_plain() ? said.get<std::string>() : "";
    auto found = decoded(said.is_plain() ? said.raw() : std::string_view(meant), count);
    if (!found || !said.is_string()) f.fail(key, "is not base64 of " + std::to_string(count) + " finite numbers");
    return found.value_or(std::vector<float>());
  };
  g.w1 = part("w1", size->inputs * size->units);
  g.b1 = part("b1", size->units);
  g.w2 = part("w2", (size->units > 0 ? size->units : size->inputs) * size->outputs);
  g.b2 = part("b2", size->outputs);
  f.finish();
  gates.emplace(kind, std::move(g));
}

ExitPolicy exit_from(const Json& value, const Manifest& m, const ExitInfo& info, std::string& fault) {
  const std::string path = "exit " + std::to_string(info.layer);
  Fields f(value, path, fault);
  ExitPolicy e;
  e.layer = f.integer("layer", 0, contract::kMaxLayers);
  if (e.layer != info.layer) f.fail("layer", "is not where the bundle has the exit");
  e.confident = thresholds_from(f.any("confident"), path + ".confident", fault);
  e.draft = thresholds_from(f.any("draft"), path + ".draft", fault);
  for (const char* kind : {"gate", "router", "predictor"})
    read_gate(f.any(kind), kind, info, m.model.hidden, f.path(kind), fault, e.gates);
  f.skip("reason");
  f.finish();
  for (const auto* thresholds : {&e.confident, &e.draft}) {
    if (!*thresholds || !fault.empty()) continue;
    if (const std::string reason = thresholds_fault(**thresholds, info, m.classes()); !reason.empty())
      f.fail("", reason);
  }
  return e;
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
  Result<Document> document = parse_object(data, where);
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
  if (m.generates() && std::find(m.kv_rules.begin(), m.kv_rules.end(), policy.kv) == m.kv_rules.end())
    f.fail("kv", "is a rule that the bundle has no graphs for");
  if (Status status = check_overlay(f, data, m, "policy", fault, where); !status.ok()) return status;
  policy.gates = gates_digest(m, exits);
  return policy;
}

Result<Calibration> read_calibration(std::string_view data, const Manifest& m, const std::string& where) {
  Result<Document> document = parse_object(data, where);
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
      if (const std::string reason = thresholds_fault(*found.back(), m.exits[i], m.classes()); !reason.empty())
        point.fail("thresholds", reason);
    }
    const double mean = point.number("risk", 0, 1), p = point.has("p_value") ? point.number("p_value", 0, 1) : 2;
    if (static_cast<std::int64_t>(number) > chosen || !fault.empty()) continue;
    if (static_cast<std::int64_t>(number) == chosen &&
        (tests ? p > error : mean > ((documents + 1) * risk - 1) / documents))
      point.fail("risk", "is above what the calibration promises");
    c.tested.push_back(std::move(found));
  }
  for (const char* other : {"loss", "tokens", "data", "traces", "draft_traces", "draft", "splits"}) f.skip(other);
  if (Status status = check_overlay(f, data, m, "calibration", fault, where); !status.ok()) return status;
  return c;
}

bool matches(const Calibration& c, const Manifest& m, const Policy& policy, const std::string& kv) {
  const auto known = std::find(m.kv_rules.begin(), m.kv_rules.end(), c.kv);
  const bool ruled = kv.empty() ? known != m.kv_rules.end() : c.kv == kv;
  return c.precision == m.precision && c.pending_cap == m.pending_cap && c.cache == m.cache &&
         c.gates == policy.gates && ruled && !c.tested.empty();
}

namespace {

// The first confident exit that is bolder than the chosen point allows; empty where none is.
std::string bold_exit(const Policy& policy, const Point& chosen) {
  for (std::size_t i = 0; i < policy.exits.size(); ++i) {
    const ExitPolicy& e = policy.exits[i];
    if (!e.confident) continue;
    const std::string exit = "exit " + std::to_string(e.layer);
    if (!chosen[i]) return exit + " has no calibrated threshold, so that it may not exit in confident mode";
    for (const auto& [criterion, value] : *e.confident) {
      const auto allowed = chosen[i]->find(criterion);
      const bool inside = allowed != chosen[i]->end() &&
                          (fires_below(criterion) ? value <= allowed->second : value >= allowed->second);
      if (!inside) return criterion + " at " + exit + " is bolder than the calibrated threshold";
    }
  }
  return "";
}

// Whether the policy's confident exits are, all of them, those of a point that passed: what an approximate K/V rule
// asks, under which a token that leaves changes what later ones see.
bool is_tested(const Policy& policy, const Calibration& calibration) {
  Point used;
  for (const ExitPolicy& e : policy.exits)
    used.push_back(e.layer >= policy.minimum_depth ? e.confident : std::nullopt);
  return std::find(calibration.tested.begin(), calibration.tested.end(), used) != calibration.tested.end();
}

}  // namespace

const Calibration* matching(const std::vector<Calibration>& calibrations, const Manifest& m, const Policy& policy,
                            const std::string& kv) {
  const auto fits = [&](const Calibration& c) { return matches(c, m, policy, kv); };
  const auto found = std::find_if(calibrations.begin(), calibrations.end(), fits);
  return found == calibrations.end() ? nullptr : &*found;
}

std::string limits_fault(const Manifest& manifest, std::int64_t minimum_depth,
                         const std::optional<std::int64_t>& budget) {
  if (minimum_depth < 0 || minimum_depth > manifest.model.layers)
    return "minimum depth " + std::to_string(minimum_depth) + " is not from 0 to the model's " +
           std::to_string(manifest.model.layers) + " layers";
  if (budget && *budget < 1) return "budget " + std::to_string(*budget) + " is not a positive number of layer-rows";
  return "";
}

std::string confident_fault(const Manifest& m, const Policy& policy, const std::vector<Calibration>& calibrations,
                            const std::string& kv) {
  const auto closed = [](const ExitPolicy& e) { return !e.confident.has_value(); };
  if (std::all_of(policy.exits.begin(), policy.exits.end(), closed)) return "";
  std::string first = "confident thresholds without a calibration of this precision, K/V rule, pending cap and gates";
  bool found = false;
  for (const Calibration& c : calibrations) {
    if (!matches(c, m, policy, kv)) continue;
    const bool approximate = m.generates() && kv != "catch_up";
    if (approximate && is_tested(policy, c)) return "";
    const std::string bold = approximate ? "" : bold_exit(policy, c.tested.back());
    if (!approximate && bold.empty()) return "";
    if (!found)
      first = approximate ? "not the thresholds of a tested point, and with this K/V rule nothing else is calibrated"
                          : "bolder than calibrated: " + bold;
    found = true;
  }
  return first;
}

}  // namespace eecompile
