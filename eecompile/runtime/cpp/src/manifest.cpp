#include "manifest.h"

#include <algorithm>
#include <array>

#include "eecompile/contract.h"
#include "files.h"
#include "json.h"
#include "manifest_parts.h"

namespace eecompile {
namespace {

using contract::kMaxLayers;

constexpr std::array<std::string_view, 4> kTasks = {"causal-lm", "sequence-classification", "token-classification",
                                                    "regression"};
constexpr std::size_t kMaxGraphs = contract::kMaxExits + 4;

std::string at(const std::string& list, std::size_t index) { return list + "." + std::to_string(index); }

std::vector<GraphInfo> graphs_from(Fields& f, const char* key, std::size_t most, std::string& fault,
                                   bool required = true) {
  std::vector<GraphInfo> found;
  for (const Json& graph : f.list(key, most, required))
    found.push_back(graph_from(graph, at(f.path(key), found.size()), fault));
  return found;
}

std::map<std::string, FileInfo> files_from(const Json& value, std::string& fault) {
  std::map<std::string, FileInfo> files;
  if (value.size() > static_cast<std::size_t>(contract::kMaxFiles)) fault = "files: are too many";
  for (const auto& [name, described] : value.items()) {
    Fields f(described, "files", fault);
    if (const std::string reason = name_fault(name); !reason.empty()) f.fail("", reason);
    if (is_outside_core(name) || name.rfind("overlays/", 0) == 0) f.fail("", name + " is not of the core");
    files[name] = {f.integer("bytes", 0, contract::kMaxFileBytes), f.digest("sha256")};
    f.finish();
  }
  return files;
}

// The paths of all graphs but the uncut one, in one order for a bundle's own and a device's.
std::vector<std::string> paths_of(const Json& value, const std::string& path, std::string& fault) {
  Fields f(value, path, fault);
  std::vector<std::string> paths;
  for (const char* one : {"embed", "head", "encoder"})
    if (f.has(one)) paths.push_back(graph_from(f.any(one), f.path(one), fault).path);
  for (const char* several : {"segments", "exits", "heads", "kv"})
    for (const Json& graph : f.list(several, kMaxGraphs, false))
      if (!graph.is_null()) paths.push_back(graph_from(graph, f.path(several), fault).path);
  f.skip("reference");
  f.finish();
  return paths;
}

DeviceInfo device_from(const Json& value, const Json& own, std::string& fault) {
  Fields f(value, "device", fault);
  DeviceInfo d;
  d.target = f.text("target", 64, 1);
  d.dialect = f.choice("dialect", kDialects);
  d.opset = f.integer("opset", 13, 64);
  d.compute = f.choice("compute", contract::kCompute);
  d.cache = f.choice("cache", contract::kCaches);
  d.plan = f.text("plan", 200, 1);
  const std::vector<std::string> theirs = paths_of(f.object("graphs"), "device.graphs", fault),
                                 ours = paths_of(own, "graphs", fault);
  f.finish();
  if (ours.size() != theirs.size()) f.fail("graphs", "are not those of the bundle");
  for (std::size_t i = 0; i < std::min(ours.size(), theirs.size()); ++i) d.paths[ours[i]] = theirs[i];
  return d;
}

void read_graphs(Manifest& m, const Json& value, std::string& fault) {
  Fields f(value, "graphs", fault);
  m.embed = graph_from(f.any("embed"), "graphs.embed", fault);
  m.head = graph_from(f.any("head"), "graphs.head", fault);
  m.segments = graphs_from(f, "segments", kMaxGraphs, fault);
  m.exit_graphs = graphs_from(f, "exits", contract::kMaxExits, fault);
  m.small_heads = graphs_from(f, "heads", contract::kMaxHeadsOfExits, fault, false);
  for (const Json& graph : f.list("kv", contract::kMaxExits + 1, false))
    m.kv.push_back(graph.is_null() ? std::nullopt
                                   : std::optional(graph_from(graph, at("graphs.kv", m.kv.size()), fault)));
  if (f.has("encoder")) m.source_graph = graph_from(f.any("encoder"), "graphs.encoder", fault);
  f.skip("reference");
  f.finish();
}

// What exits ask of each other or of heads that is not there (shapes.py); empty where nothing.
std::string exits_fault(const Manifest& m) {
  std::string candidates;
  for (std::size_t i = 0; i < m.exits.size(); ++i) {
    const ExitInfo& e = m.exits[i];
    const std::string exit = "exit " + std::to_string(e.layer);
    const auto there = [&](const std::string& name) {
      const auto named = [&](const HeadInfo& head) { return head.name == name; };
      return std::any_of(m.heads.begin(), m.heads.end(), named);
    };
    if (e.head != contract::kFullHead && !there(e.head)) return exit + " asks for a head that is not there";
    if (e.predictor && !there(e.predictor->head)) return exit + " has a predictor without a small head";
    if (e.predictor && !candidates.empty() && candidates != e.predictor->head) return "predictors differ in their head";
    if (e.predictor) candidates = e.predictor->head;
    const std::optional<std::size_t> source = router_of(m.exits, i);
    const bool routed = source && static_cast<std::int64_t>(i - *source) <= m.exits[*source].router->choices - 2;
    if (e.has(contract::kRouter) && !routed)
      return exit + " has no router, nor has one before it that can choose to stop here";
    if ((e.adapter == "layer") != (m.exit_graphs[i].layers > 0)) return exit + " and its graph differ in layers";
  }
  return "";
}

// Whether the K/V rules have what they need (manifest.py); empty where they have.
std::string rules_fault(const Manifest& m) {
  const auto has = [&](std::string_view rule) { return std::count(m.kv_rules.begin(), m.kv_rules.end(), rule); };
  if (m.kv_rules.empty() || m.kv_rules[0] != "catch_up") return "the K/V rules do not begin with catch_up";
  if (has("catch_up") != 1 || has("propagate") > 1 || has("selected") > 1 ||
      m.kv_rules.size() != static_cast<std::size_t>(1 + has("propagate") + has("selected")))
    return "the K/V rules are not catch_up and others, each once";
  if ((has("propagate") > 0) != !m.kv.empty() || (!m.kv.empty() && m.kv.size() != m.segments.size()))
    return "the rule propagate needs a place for a K/V-only graph for each segment";
  const auto layered = [](const ExitInfo& e) { return e.adapter == "layer"; };
  const bool attends = std::any_of(m.exits.begin(), m.exits.end(), layered);
  for (std::size_t k = 0; k < m.schedule.size() && !m.kv.empty(); ++k) {
    const Step& step = m.schedule[k];
    if (k > 0 && (!m.kv[step.segment] || m.kv[step.segment]->layers != m.segments[step.segment].layers))
      return "a segment has no K/V-only graph of its layers";
    if (!step.factors.empty() || step.cycle || attends)
      return "the rule propagate does not go with LoRA, cyclic gates or exits with a layer";
  }
  if (has("selected") && attends) return "the rule selected does not go with exits with a layer";
  for (const GraphInfo& segment : m.segments)
    for (const TensorInfo& tensor : segment.inputs) {
      if (tensor.name != contract::kKeyPositions) continue;
      if (!has("selected")) return "key positions are kept for the rule selected alone";
      if (tensor.dtype != "int64" || tensor.shape != std::vector<std::int64_t>{-1, 1, -1, 1} ||
          tensor.symbols[0] != "B" || tensor.symbols[2] != contract::kLength)
        return "key positions are not int64 [B, 1, T, 1]";
    }
  return "";
}

// Whether the files of LoRA factors and cyclic gates are there, in the sizes that their segments take.
std::string factors_fault(const Manifest& m) {
  const auto has = [&](const std::string& name, std::int64_t bytes) {
    const auto found = m.files.find(name);
    return found != m.files.end() && found->second.bytes == bytes;
  };
  for (const Step& step : m.schedule) {
    if (step.cycle && &step == &m.schedule.back()) return "a cyclic gate stands at the last step";
    if (step.cycle && !has(step.cycle->weights, 4 * (2 * m.model.hidden + 1)))
      return "a cyclic gate's file is not there or not of its size";
    const auto shapes = factor_shapes(m.segments[step.segment]);
    if (!shapes) return "a segment takes a factor that is not float32 of fixed size";
    if (shapes->empty() != step.factors.empty()) return "a segment and its steps differ in whether there are factors";
    std::int64_t bytes = 0;
    for (const auto& [name, shape] : *shapes) {
      std::int64_t size = 4;
      for (const std::int64_t side : shape)
        if (__builtin_mul_overflow(size, side, &size)) return name + " is too large";
      if (__builtin_add_overflow(bytes, size, &bytes)) return name + " is too large";
    }
    if (!step.factors.empty() && !has(step.factors, bytes)) return "factors are not there or not of their size";
  }
  return "";
}

// What the parts ask of each other (manifest.py); empty where they agree.
std::string disagreement(const Manifest& m) {
  if (m.exit_graphs.size() != m.exits.size()) return "exits and exit graphs differ in number";
  if (m.small_heads.size() != m.heads.size()) return "small heads and their graphs differ in number";
  if (m.minimum_rows > m.slack || m.pending_cap + 1 > m.slack) return "the slack is smaller than a padded pass";
  if (const std::string fault = exits_fault(m); !fault.empty()) return fault;
  std::int64_t depth = 0;
  std::size_t asked = 0;
  std::vector<int> used(m.caches.size());
  for (const Step& step : m.schedule) {
    if (step.segment >= m.segments.size() || step.cache >= m.caches.size())
      return "the schedule names a missing segment or cache";
    if (m.caches[step.cache] != m.segments[step.segment].layers) return "a cache and its segment differ in layers";
    if (used[step.cache]++) return "the schedule uses a cache twice";
    if (m.caches[step.cache] == 0 && &step != &m.schedule.back()) return "a segment without layers is not the last";
    depth += m.segments[step.segment].layers;
    if (!step.exit) continue;
    if (*step.exit != asked || asked >= m.exits.size() || m.exits[asked].layer != depth)
      return "an exit is asked where it is not";
    ++asked;
  }
  if (depth != m.model.layers || asked != m.exits.size())
    return "the schedule does not run the model's layers and ask every exit in order";
  if (m.schedule.size() != m.caches.size()) return "the schedule does not use every cache once";
  if (m.schedule.back().exit) return "an exit stands after the last layer";
  if (const std::string fault = m.generates() ? rules_fault(m) : ""; !fault.empty()) return fault;
  return factors_fault(m);
}

std::string graph_fault(const Manifest& m) {
  std::vector<const GraphInfo*> graphs = {&m.embed, &m.head};
  for (const std::optional<GraphInfo>& graph : m.kv)
    if (graph) graphs.push_back(&*graph);
  if (m.source_graph) graphs.push_back(&*m.source_graph);
  for (const auto* list : {&m.segments, &m.exit_graphs, &m.small_heads})
    for (const GraphInfo& graph : *list) graphs.push_back(&graph);
  for (const GraphInfo* graph : graphs)
    if (m.files.find(graph->path) == m.files.end())
      return "the graph " + graph->path + " is not among the manifest's files";
  for (const GraphInfo& segment : m.segments)
    for (const TensorInfo& tensor : segment.inputs) {
      const bool whole = tensor.name.rfind("key_cache_", 0) == 0 || tensor.name.rfind("value_cache_", 0) == 0;
      if (whole &&
          (tensor.shape.size() != 4 || tensor.shape[1] != m.model.kv_heads || tensor.shape[3] != m.model.head_dim))
        return tensor.name + " is not of the model's size";
    }
  return "";
}

Result<int> check_version(const Json& document, const std::string& where) {
  const Json version = document.find("version");
  if (document.find("format") != contract::kFormat)
    return damaged("not the manifest of an eecompile bundle", where, "give the directory that `eecompile build` wrote");
  const bool numbered = version.is_number_integer();
  if (numbered && version.get<std::int64_t>() > contract::kFormatVersion)
    return damaged("made by a newer eecompile: format version " + std::string(version.raw().substr(0, 20)), where,
                   "upgrade eecompile, or build the bundle again with this one");
  if (!numbered || version.get<std::int64_t>() != contract::kFormatVersion)
    return damaged("unknown format version", where);
  return 1;
}

}  // namespace

int TensorInfo::symbol(std::string_view wanted) const {
  for (std::size_t i = 0; i < symbols.size(); ++i)
    if (symbols[i] == wanted) return static_cast<int>(i);
  return -1;
}

bool Manifest::generates() const { return task == contract::kCausalLm; }

std::int64_t Manifest::classes() const {
  return labels.empty() ? model.vocab : static_cast<std::int64_t>(labels.size());
}

bool ExitInfo::has(std::string_view gate) const { return std::find(gates.begin(), gates.end(), gate) != gates.end(); }

std::optional<std::vector<std::pair<std::string, std::vector<std::int64_t>>>> factor_shapes(const GraphInfo& segment) {
  std::vector<std::pair<std::string, std::vector<std::int64_t>>> found;
  for (const TensorInfo& tensor : segment.inputs) {
    if (tensor.name.rfind(contract::kLora, 0) != 0) continue;
    const bool fixed = std::all_of(tensor.shape.begin(), tensor.shape.end(), [](std::int64_t n) { return n >= 0; });
    if (!fixed || tensor.dtype != "float32") return std::nullopt;
    found.emplace_back(tensor.name, tensor.shape);
  }
  return found;
}

std::optional<GateSize> gate_size(const ExitInfo& info, std::string_view kind, std::int64_t hidden) {
  const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
  if (kind == "gate" && info.gate_units > 0) return GateSize{size(hidden), size(info.gate_units), 1};
  if (kind == contract::kRouter && info.router)
    return GateSize{size(hidden), size(info.router->units), size(info.router->choices)};
  if (kind == contract::kPredictor && info.predictor)
    return GateSize{size(3 * contract::kCandidateCount), size(info.predictor->units), 1};
  return std::nullopt;
}

std::optional<std::size_t> router_of(const std::vector<ExitInfo>& exits, std::size_t number) {
  for (std::size_t i = number + 1; i-- > 0;)
    if (exits[i].router) return i;
  return std::nullopt;
}

Result<Manifest> read_manifest(std::string_view data, const std::string& where) {
  Result<Document> document = parse_object(data, where);
  if (!document.ok()) return document.status();
  if (const Result<int> version = check_version(*document, where); !version.ok()) return version.status();
  std::string fault;
  Manifest m;
  Fields f(*document, "", fault);
  m.model = model_from(f.object("model"), fault);
  m.precision = f.choice("precision", contract::kPrecisions);
  m.cache = f.choice("cache", contract::kCaches, "fp32");
  m.task = f.choice("task", kTasks, contract::kCausalLm);
  m.pending_cap = f.integer("pending_cap", 1, 1024);
  m.prefill_rows = f.integer("prefill_rows", 1, 65536);
  m.minimum_rows = f.integer("minimum_rows", 1, 16);
  m.slack = f.integer("slack", 1, 65536);
  m.slots = f.integer("slots", 1, 4096);
  m.tokenizer = f.flag("tokenizer");
  m.digest = f.digest("digest");
  for (const Json& rule : f.list("kv_rules", 4)) m.kv_rules.push_back(rule.is_string() ? rule.get<std::string>() : "");
  for (const Json& value : f.list("exits", contract::kMaxExits))
    m.exits.push_back(exit_from(value, at("exits", m.exits.size()), fault));
  for (const Json& value : f.list("heads", contract::kMaxHeadsOfExits, false))
    m.heads.push_back(head_from(value, at("heads", m.heads.size()), m.model.vocab, fault));
  for (const Json& value : f.list("schedule", kMaxLayers))
    m.schedule.push_back(step_from(value, at("schedule", m.schedule.size()), fault));
  for (const Json& value : f.list("caches", kMaxLayers))
    m.caches.push_back(value.is_number_unsigned() ? value.get<std::int64_t>() : -1);
  read_graphs(m, f.object("graphs"), fault);
  m.files = files_from(f.object("files"), fault);
  m.target = f.text("target", 200, 1);
  if (f.has("device")) m.device = device_from(f.any("device"), f.object("graphs"), fault);
  read_encoder(m, f, fault);
  read_source(m, f, fault);
  for (const char* other : {"format", "version", "eecompile", "provenance"}) f.skip(other);
  f.finish();
  if (fault.empty() && m.schedule.empty()) fault = "schedule: is empty";
  if (fault.empty()) fault = disagreement(m);
  if (fault.empty()) fault = task_fault(m);
  if (fault.empty()) fault = source_fault(m);
  if (fault.empty()) fault = graph_fault(m);
  if (!fault.empty()) return damaged("does not follow the schema: " + fault, where);
  if (document_digest(data) != m.digest)
    return damaged("changed by hand or damaged: it does not agree with its own digest", where);
  return m;
}

}  // namespace eecompile
