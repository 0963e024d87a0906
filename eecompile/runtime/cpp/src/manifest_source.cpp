// What the manifest of an encoder-decoder has besides: its source, and an encoder that gives what the decoder takes.
#include <algorithm>
#include <set>

#include "eecompile/contract.h"
#include "manifest_parts.h"

namespace eecompile {
namespace {

bool is_cross(const TensorInfo& tensor) {
  return tensor.name.rfind("cross_key_", 0) == 0 || tensor.name.rfind("cross_value_", 0) == 0;
}

// The names of what the encoder gives, in order.
std::vector<std::string> crosses(const Manifest& m) {
  std::vector<std::string> names;
  for (std::int64_t layer = 0; layer < m.model.layers; ++layer)
    for (const char* kind : {"cross_key_", "cross_value_"}) names.push_back(kind + std::to_string(layer));
  return names;
}

std::vector<std::string> names_of(const std::vector<TensorInfo>& tensors) {
  std::vector<std::string> names;
  for (const TensorInfo& tensor : tensors) names.push_back(tensor.name);
  return names;
}

std::string sizes_fault(const Manifest& m) {
  const std::vector<std::int64_t> shape = {-1, m.model.heads, -1, m.model.head_dim};
  std::vector<const std::vector<TensorInfo>*> all = {&m.source_graph->outputs};
  for (const GraphInfo& segment : m.segments) all.push_back(&segment.inputs);
  for (const std::vector<TensorInfo>* tensors : all)
    for (const TensorInfo& tensor : *tensors)
      if (is_cross(tensor) && (tensor.dtype != "float32" || tensor.shape != shape))
        return tensor.name + " is not of the model's size";
  return "";
}

}  // namespace

void read_source(Manifest& m, Fields& fields, std::string& fault) {
  if (!fields.has("source")) return;
  Fields f(fields.object("source"), "source", fault);
  m.source = SourceInfo{f.integer("context", 1, contract::kMaxContext), f.integer("start", 0, m.model.vocab - 1)};
  f.finish();
}

std::string source_fault(const Manifest& m) {
  if (m.source.has_value() != m.source_graph.has_value()) return "a source and an encoder belong together";
  std::set<std::string> asked, given;
  for (const GraphInfo& segment : m.segments)
    for (const TensorInfo& tensor : segment.inputs)
      if (is_cross(tensor) || tensor.name == contract::kSourceLength) asked.insert(tensor.name);
  const std::vector<std::string> cross = m.source ? crosses(m) : std::vector<std::string>();
  given.insert(cross.begin(), cross.end());
  if (m.source) given.insert(std::string(contract::kSourceLength));
  if (asked != given) return "the segments do not take what an encoder gives";
  if (!m.source) return "";
  const std::vector<std::string> inputs = {std::string(contract::kTokenIds), std::string(contract::kSourceLength)};
  if (names_of(m.source_graph->inputs) != inputs || names_of(m.source_graph->outputs) != cross)
    return "the encoder does not give every layer its keys and values";
  if (m.slots != 1) return "an encoder-decoder has one slot";
  if (m.kv_rules != std::vector<std::string>{"catch_up"}) return "an encoder-decoder knows the rule catch_up alone";
  return sizes_fault(m);
}

}  // namespace eecompile
