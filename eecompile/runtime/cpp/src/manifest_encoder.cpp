// What a classifier's manifest has besides, and what it cannot have: labels, the encoder, its graphs' interfaces.
#include <algorithm>

#include "eecompile/contract.h"
#include "manifest_parts.h"

namespace eecompile {
namespace {

constexpr std::int64_t kAnySize = -1;
constexpr std::string_view kRegression = "regression";

// A tensor as the contract has it: kAnySize where a dimension has a symbol.
struct Expected {
  std::string_view name, dtype;
  std::vector<std::int64_t> shape;
};

bool is_as_expected(const TensorInfo& tensor, const std::vector<Expected>& those) {
  return std::any_of(those.begin(), those.end(), [&](const Expected& one) {
    return one.name == tensor.name && one.dtype == tensor.dtype && one.shape == tensor.shape;
  });
}

std::string interface_fault(const GraphInfo& graph, const std::vector<Expected>& inputs,
                            const std::vector<Expected>& outputs) {
  for (const bool input : {true, false}) {
    const std::vector<TensorInfo>& have = input ? graph.inputs : graph.outputs;
    const std::vector<Expected>& wanted = input ? inputs : outputs;
    if (have.size() != wanted.size()) return graph.path + " has another number of tensors than an encoder's graph has";
    for (const TensorInfo& tensor : have)
      if (!is_as_expected(tensor, wanted)) return graph.path + ": " + tensor.name + " is not as an encoder has it";
  }
  return "";
}

std::string embed_fault(const Manifest& m) {
  std::vector<Expected> inputs = {{contract::kTokenIds, "int64", {kAnySize}},
                                  {contract::kPositions, "int64", {kAnySize}}};
  if (m.encoder->types > 0) inputs.push_back({contract::kTokenTypes, "int64", {kAnySize}});
  return interface_fault(m.embed, inputs, {{contract::kHiddenOut, "float32", {kAnySize, m.model.hidden}}});
}

std::string segment_fault(const Manifest& m, const GraphInfo& graph) {
  const std::vector<std::int64_t> rows = {kAnySize, m.model.hidden}, texts = {kAnySize, kAnySize};
  return interface_fault(graph,
                         {{contract::kHidden, "float32", rows},
                          {contract::kFrozen, "float32", rows},
                          {contract::kQueryRows, "int64", texts},
                          {contract::kRowPlaces, "int64", {kAnySize}},
                          {contract::kKeyRows, "int64", texts},
                          {contract::kKeyMask, "bool", texts}},
                         {{contract::kHiddenOut, "float32", rows}});
}

std::string classifier_fault(const Manifest& m, const GraphInfo& graph) {
  std::vector<Expected> inputs = {{contract::kHidden, "float32", {kAnySize, m.model.hidden}}};
  std::vector<Expected> outputs = {{contract::kLogits, "float32", {kAnySize, m.classes()}}};
  if (m.task != kRegression) {
    inputs.push_back({contract::kThresholds, "float32", {kAnySize, 3}});
    outputs.push_back({contract::kToken, "int64", {kAnySize}});
    outputs.push_back({contract::kExitFlag, "bool", {kAnySize}});
    for (const std::string_view score : {contract::kMaxProb, contract::kMargin, contract::kEntropy})
      outputs.push_back({score, "float32", {kAnySize}});
  }
  return interface_fault(graph, inputs, outputs);
}

std::string graphs_fault(const Manifest& m) {
  std::string fault = embed_fault(m);
  for (const GraphInfo& graph : m.segments)
    if (fault.empty()) fault = segment_fault(m, graph);
  for (const GraphInfo& graph : m.exit_graphs)
    if (fault.empty()) fault = classifier_fault(m, graph);
  return fault.empty() ? classifier_fault(m, m.head) : fault;
}

template <std::size_t N>
bool holds(const std::array<std::string_view, N>& those, std::string_view one) {
  return std::find(those.begin(), those.end(), one) != those.end();
}

bool may_go_by(const Manifest& m, std::string_view gate) {
  if (m.generates()) return holds(contract::kCriteria, gate);
  return m.task == kRegression ? holds(contract::kValueCriteria, gate) : holds(contract::kLabelCriteria, gate);
}

}  // namespace

void read_encoder(Manifest& m, Fields& fields, std::string& fault) {
  for (const Json& label : fields.list("labels", contract::kMaxLabels, false)) {
    m.labels.push_back(label.is_string() ? label.get<std::string>() : "");
    if (m.labels.back().empty() || m.labels.back().size() > 800) fields.fail("labels", "are not short texts");
  }
  if (!fields.has("encoder")) return;
  Fields f(fields.object("encoder"), "encoder", fault);
  m.encoder = EncoderInfo{f.integer("types", 0, 1024), std::nullopt};
  if (f.has("padding")) m.encoder->padding = f.integer("padding", 0, contract::kMaxVocab - 1);
  f.finish();
}

std::string task_fault(const Manifest& m) {
  const bool encodes = !m.generates();
  if (encodes != m.encoder.has_value() || encodes == m.labels.empty())
    return "labels and the encoder's description belong to a classifier, and the task is " + m.task;
  for (const ExitInfo& e : m.exits) {
    for (const std::string& gate : e.gates)
      if (!may_go_by(m, gate)) return "an exit has the gate " + gate + ", which a " + m.task + " cannot have";
    if (!encodes && e.adapter == "classifier") return "an exit has a classifier of its own, which only encoders may";
  }
  if (!encodes) return "";
  if ((m.task == kRegression) != (m.labels.size() == 1)) return "another number of labels than a " + m.task + " has";
  const auto scheduled = [](const ExitInfo& e) { return e.schedule.has_value(); };
  if (!m.heads.empty() || std::any_of(m.exits.begin(), m.exits.end(), scheduled))
    return "small heads and schedules are for language models";
  for (const std::string& rule : m.kv_rules)
    if (rule != "none" && rule != "propagate") return "an encoder has no rule for caches, which it lacks";
  return graphs_fault(m);
}

}  // namespace eecompile
