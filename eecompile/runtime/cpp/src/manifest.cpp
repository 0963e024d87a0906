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
constexpr std::array<std::string_view, 2> kDialects = {"modern", "classic"};
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
  if (f.has("encoder")) m.missing = "an encoder-decoder";
  for (const char* other : {"reference", "kv"}) f.skip(other);
  f.finish();
}

// What the parts ask of each other (manifest.py); empty where they agree.
std::string disagreement(const Manifest& m) {
  if (m.exit_graphs.size() != m.exits.size()) return "exits and exit graphs differ in number";
  if (m.small_heads.size() != m.heads.size()) return "small heads and their graphs differ in number";
  if (m.minimum_rows > m.slack || m.pending_cap + 1 > m.slack) return "the slack is smaller than a padded pass";
  if (m.kv_rules.empty() || m.kv_rules[0] != "catch_up") return "the K/V rules do not begin with catch_up";
  for (const ExitInfo& e : m.exits) {
    const auto named = [&](const HeadInfo& head) { return head.name == e.head; };
    if (e.head != contract::kFullHead && std::none_of(m.heads.begin(), m.heads.end(), named))
      return "exit " + std::to_string(e.layer) + " asks for a head that is not there";
  }
  std::int64_t depth = 0;
  std::size_t asked = 0;
  std::vector<int> used(m.caches.size());
  for (const Step& step : m.schedule) {
    if (step.segment >= m.segments.size() || step.cache >= m.caches.size())
      return "the schedule names a missing segment or cache";
    if (m.caches[step.cache] != m.segments[step.segment].layers) return "a cache and its segment differ in layers";
    if (used[step.cache]++) return "the schedule uses a cache twice";
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
  return "";
}

std::string graph_fault(const Manifest& m) {
  std::vector<const GraphInfo*> graphs = {&m.embed, &m.head};
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
  const auto format = document.find("format"), version = document.find("version");
  if (format == document.end() || *format != contract::kFormat)
    return damaged("not the manifest of an eecompile bundle", where, "give the directory that `eecompile build` wrote");
  if (version != document.end() && version->is_number_integer() &&
      version->get<std::int64_t>() > contract::kFormatVersion)
    return damaged("made by a newer eecompile: format version " + version->dump().substr(0, 20), where,
                   "upgrade eecompile, or build the bundle again with this one");
  if (version == document.end() || !version->is_number_integer() || *version != contract::kFormatVersion)
    return damaged("unknown format version", where);
  return 1;
}

}  // namespace

int TensorInfo::symbol(std::string_view wanted) const {
  for (std::size_t i = 0; i < symbols.size(); ++i)
    if (symbols[i] == wanted) return static_cast<int>(i);
  return -1;
}

bool ExitInfo::has(std::string_view gate) const { return std::find(gates.begin(), gates.end(), gate) != gates.end(); }

Result<Manifest> read_manifest(std::string_view data, const std::string& where) {
  Result<Json> document = parse_object(data, where);
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
  m.tokenizer = f.flag("tokenizer");
  m.digest = f.digest("digest");
  for (const Json& rule : f.list("kv_rules", 4)) m.kv_rules.push_back(rule.is_string() ? rule.get<std::string>() : "");
  for (const Json& value : f.list("exits", contract::kMaxExits))
    m.exits.push_back(exit_from(value, at("exits", m.exits.size()), fault, m.missing));
  for (const Json& value : f.list("heads", contract::kMaxHeadsOfExits, false))
    m.heads.push_back(head_from(value, at("heads", m.heads.size()), m.model.vocab, fault));
  for (const Json& value : f.list("schedule", kMaxLayers))
    m.schedule.push_back(step_from(value, at("schedule", m.schedule.size()), fault, m.missing));
  for (const Json& value : f.list("caches", kMaxLayers))
    m.caches.push_back(value.is_number_unsigned() ? value.get<std::int64_t>() : -1);
  read_graphs(m, f.object("graphs"), fault);
  m.files = files_from(f.object("files"), fault);
  m.target = f.text("target", 200, 1);
  m.slots = f.integer_or("slots", 1, 4096, 1);
  if (f.has("device")) m.device = device_from(f.any("device"), f.object("graphs"), fault);
  if (m.task != contract::kCausalLm) m.missing = "the task " + m.task;
  if (f.has("source")) m.missing = "an encoder-decoder";
  for (const char* other :
       {"format", "version", "eecompile", "provenance", "labels", "encoder"})
    f.skip(other);
  f.finish();
  if (fault.empty() && m.schedule.empty()) fault = "schedule: is empty";
  if (fault.empty() && m.task == contract::kCausalLm) fault = disagreement(m);
  if (fault.empty()) fault = graph_fault(m);
  if (!fault.empty()) return damaged("does not follow the schema: " + fault, where);
  if (document_digest(data) != m.digest)
    return damaged("changed by hand or damaged: it does not agree with its own digest", where);
  return m;
}

}  // namespace eecompile
