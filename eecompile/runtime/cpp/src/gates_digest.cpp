#include "gates_digest.h"

#include <map>

#include <nlohmann/json.hpp>

#include "eecompile/contract.h"
#include "sha256.h"

namespace eecompile {
namespace {

using Members = std::map<std::string, std::string>;  // by name, as canonical JSON; a tree's destructor would want memory

std::string written(const std::string& text) { return nlohmann::json(text).dump(); }
std::string written(double number) { return nlohmann::json(number).dump(); }

std::string written(const Members& members) {
  std::string text;
  for (const auto& [name, value] : members) text += (text.empty() ? "{" : ",") + written(name) + ":" + value;
  return text + "}";
}

std::string written(const std::vector<std::string>& texts) {
  std::string all;
  for (const std::string& text : texts) all += (all.empty() ? "[" : ",") + written(text);
  return all.empty() ? "[]" : all + "]";
}

std::string written(const ThresholdSchedule& s) {
  if (!s.adaptive)
    return written(Members{{"kind", "\"decay\""}, {"tau", written(s.tau)}, {"tokens", std::to_string(s.tokens)}});
  return written(Members{{"kind", "\"adaptive\""},
                         {"zeta", written(s.zeta)},
                         {"low", written(s.low)},
                         {"high", written(s.high)},
                         {"points", std::to_string(s.points)},
                         {"updates", std::to_string(s.updates)}});
}

void hash_text(Sha256& hash, std::string_view text) { hash.update(text.data(), text.size()); }

// A gate's weights, found to be integers and texts, as canonical JSON; texts are large, and hashed where they lie.
void hash_weights(Sha256& hash, const Json& weights) {
  if (weights.is_null()) return hash_text(hash, "null");
  std::map<std::string, Json> sorted;
  for (const auto& [key, value] : weights.items()) sorted[key] = value;
  std::string before = "{";
  for (const auto& [key, value] : sorted) {
    hash_text(hash, before + written(key) + (value.is_plain() ? ":\"" : ":"));
    if (value.is_plain()) hash_text(hash, value.raw());
    else if (value.is_string()) hash_text(hash, written(value.get<std::string>()));
    else hash_text(hash, std::to_string(value.get<std::int64_t>()));
    before = value.is_plain() ? "\"," : ",";
  }
  hash_text(hash, before[0] == '"' ? "\"}" : "}");
}

}  // namespace

std::string gates_digest(const Manifest& m, const Json& policy_exits) {
  Sha256 hash;
  for (std::size_t i = 0; i < m.exits.size(); ++i) {
    const ExitInfo& e = m.exits[i];
    const Json said = policy_exits[i];
    Members one = {{"adapter", written(e.adapter)},
                   {"gate_units", std::to_string(e.gate_units)},
                   {"gates", written(e.gates)},
                   {"layer", std::to_string(e.layer)}};
    std::map<std::string, Json> weights = {{"weights", said.find("gate")}};
    if (e.head != contract::kFullHead) one["head"] = written(e.head);
    if (e.router)
      one["router"] = written(
          Members{{"choices", std::to_string(e.router->choices)}, {"units", std::to_string(e.router->units)}});
    if (e.predictor)
      one["predictor"] =
          written(Members{{"head", written(e.predictor->head)}, {"units", std::to_string(e.predictor->units)}});
    if (e.schedule) one["schedule"] = written(*e.schedule);
    for (const char* kind : {"router", "predictor"})
      if (!said.find(kind).is_null()) weights[std::string(kind) + "_weights"] = said.find(kind);
    for (const auto& [name, value] : weights) one[name] = "";
    std::string before = i == 0 ? "[{" : ",{";
    for (const auto& [name, text] : one) {
      hash_text(hash, before + written(name) + ":" + text);
      if (const auto own = weights.find(name); own != weights.end()) hash_weights(hash, own->second);
      before = ",";
    }
    hash_text(hash, "}");
  }
  hash_text(hash, m.exits.empty() ? "[]" : "]");
  return hash.hex();
}

}  // namespace eecompile
