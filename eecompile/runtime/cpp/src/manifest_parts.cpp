// The parts of a manifest, each read from its own object.
#include "manifest_parts.h"

#include <algorithm>
#include <array>

#include "eecompile/contract.h"

namespace eecompile {
namespace {

using contract::kMaxLayers;

constexpr std::array<std::string_view, 5> kDtypes = {"float32", "float16", "int8", "int64", "bool"};
constexpr std::array<std::string_view, 5> kAdapters = {"norm", "affine", "mlp", "layer", "classifier"};
constexpr std::array<std::string_view, 2> kHeadKinds = {"low_rank", "shortlist"};
constexpr std::array<std::string_view, 2> kSchedules = {"decay", "adaptive"};
constexpr std::size_t kMaxTensors = 4096;

TensorInfo tensor_from(const Json& value, const std::string& path, std::string& fault) {
  Fields f(value, path, fault);
  TensorInfo info;
  info.name = f.text("name", 200, 1);
  info.dtype = f.choice("dtype", kDtypes);
  for (const Json& size : f.list("shape", 8)) {
    const bool fixed = size.is_number_unsigned() && size.get<std::uint64_t>() <= (std::uint64_t{1} << 32);
    const bool named = size.is_string() && !size.get<std::string>().empty();
    if (!fixed && !named) f.fail("shape", "has a dimension that is neither a size nor a symbol");
    info.shape.push_back(fixed ? size.get<std::int64_t>() : -1);
    info.symbols.push_back(named ? size.get<std::string>() : "");
  }
  f.finish();
  return info;
}

RouterInfo router_from(const Json& value, const std::string& path, std::string& fault) {
  Fields f(value, path, fault);
  RouterInfo r;
  r.choices = f.integer("choices", 2, contract::kMaxExits + 1);
  r.units = f.integer_or("units", 0, 4096, 0);
  f.finish();
  return r;
}

PredictorInfo predictor_from(const Json& value, const std::string& path, std::string& fault) {
  Fields f(value, path, fault);
  PredictorInfo p;
  p.head = f.text("head", 32, 1);
  p.units = f.integer_or("units", 1, 4096, 512);
  f.finish();
  return p;
}

ThresholdSchedule schedule_from(const Json& value, const std::string& path, std::string& fault) {
  Fields f(value, path, fault);
  ThresholdSchedule s;
  const auto number = [&](const char* key, double low, double high, double& target) {
    if (f.has(key)) target = f.number(key, low, high);
  };
  s.adaptive = f.choice("kind", kSchedules) == "adaptive";
  if (s.adaptive) {
    number("zeta", 0, 1, s.zeta), number("low", 0, 1, s.low), number("high", 0, 1, s.high);
    s.points = f.integer_or("points", 2, 1000, s.points);
    s.updates = f.integer_or("updates", 1, 1 << 20, s.updates);
  } else {
    number("tau", 0, 1000, s.tau);
    if (s.tau == 0) f.fail("tau", "is not above 0");
    s.tokens = f.integer_or("tokens", 1, contract::kMaxContext, s.tokens);
  }
  f.finish();
  return s;
}

}  // namespace

GraphInfo graph_from(const Json& value, const std::string& path, std::string& fault) {
  Fields f(value, path, fault);
  GraphInfo info;
  info.path = f.text("path", 200, 1);
  info.layers = f.integer_or("layers", 0, kMaxLayers, 0);
  for (const char* side : {"inputs", "outputs"})
    for (const Json& tensor : f.list(side, kMaxTensors))
      (side[0] == 'i' ? info.inputs : info.outputs).push_back(tensor_from(tensor, f.path(side), fault));
  f.finish();
  return info;
}

ModelInfo model_from(const Json& value, std::string& fault) {
  Fields f(value, "model", fault);
  ModelInfo m;
  m.family = f.text("family", 200, 1);
  m.layers = f.integer("layers", 1, kMaxLayers);
  m.hidden = f.integer("hidden", 1, contract::kMaxHidden);
  m.heads = f.integer("heads", 1, contract::kMaxHeads);
  m.kv_heads = f.integer("kv_heads", 1, contract::kMaxHeads);
  m.head_dim = f.integer("head_dim", 1, 4096);
  m.vocab = f.integer("vocab", 1, contract::kMaxVocab);
  m.context = f.integer("context", 1, contract::kMaxContext);
  if (f.has("bos")) m.bos = f.integer("bos", 0, m.vocab - 1);
  for (const Json& id : f.list("eos", 64, false)) {
    m.eos.push_back(id.is_number_unsigned() ? id.get<std::int64_t>() : -1);
    if (m.eos.back() < 0 || m.eos.back() >= m.vocab) f.fail("eos", "is not in the vocabulary");
  }
  f.skip("parameters");
  f.finish();
  if (fault.empty() && m.heads % m.kv_heads != 0) f.fail("heads", "cannot share the key/value heads evenly");
  return m;
}

ExitInfo exit_from(const Json& value, const std::string& path, std::string& fault) {
  Fields f(value, path, fault);
  ExitInfo e;
  e.layer = f.integer("layer", 1, kMaxLayers);
  e.adapter = f.choice("adapter", kAdapters);
  e.gate_units = f.integer_or("gate_units", 0, 4096, 0);
  e.head = f.has("head") ? f.text("head", 32, 1) : std::string(contract::kFullHead);
  for (const Json& gate : f.list("gates", 4)) {
    e.gates.push_back(gate.is_string() ? gate.get<std::string>() : "");
    const auto known = std::find(contract::kCriteria.begin(), contract::kCriteria.end(), e.gates.back());
    if ((known == contract::kCriteria.end() && e.gates.back() != "delta") ||
        std::count(e.gates.begin(), e.gates.end(), e.gates.back()) > 1)
      f.fail("gates", "are not criteria, each once");
  }
  if (e.gates.empty()) f.fail("gates", "are none");
  if (e.has("learned") != (e.gate_units > 0))
    f.fail("gate_units", "is the width of the learned gate, and 0 without one");
  if (f.has("router")) e.router = router_from(f.any("router"), f.path("router"), fault);
  if (f.has("predictor")) e.predictor = predictor_from(f.any("predictor"), f.path("predictor"), fault);
  if (f.has("schedule")) e.schedule = schedule_from(f.any("schedule"), f.path("schedule"), fault);
  if (e.router && !e.has("router")) f.fail("router", "is there without its gate");
  if (e.has("predictor") != e.predictor.has_value()) f.fail("predictor", "and its gate belong together");
  if (e.schedule && !e.has("max_prob") && !e.has("margin")) f.fail("schedule", "moves the threshold of neither gate");
  f.finish();
  return e;
}

HeadInfo head_from(const Json& value, const std::string& path, std::int64_t vocab, std::string& fault) {
  Fields f(value, path, fault);
  HeadInfo h;
  h.name = f.text("name", 32, 1);
  h.kind = f.choice("kind", kHeadKinds);
  for (const Json& token : f.list("tokens", contract::kMaxShortlist, false)) {
    h.tokens.push_back(token.is_number_unsigned() ? token.get<std::int64_t>() : -1);
    if (h.tokens.back() < 0 || h.tokens.back() >= vocab) f.fail("tokens", "are not in the vocabulary");
  }
  if ((h.kind == "shortlist") == h.tokens.empty()) f.fail("tokens", "belong to a shortlist, and to it alone");
  f.skip("rank");
  f.skip("bias");
  f.finish();
  return h;
}

Step step_from(const Json& value, const std::string& path, std::string& fault) {
  Fields f(value, path, fault);
  Step s;
  s.segment = static_cast<std::size_t>(f.integer("segment", 0, kMaxLayers));
  s.cache = static_cast<std::size_t>(f.integer("cache", 0, kMaxLayers));
  if (f.has("exit")) s.exit = static_cast<std::size_t>(f.integer("exit", 0, kMaxLayers));
  if (f.has("factors")) s.factors = f.text("factors", 200, 1);
  if (f.has("cycle")) {
    Fields own(f.any("cycle"), f.path("cycle"), fault);
    s.cycle = CycleInfo{own.number("threshold", 0, 1), own.integer("repeats", 1, contract::kMaxRepeats),
                        own.text("weights", 200, 1)};
    own.finish();
  }
  f.finish();
  return s;
}

}  // namespace eecompile
