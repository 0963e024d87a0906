#include "graphs.h"

#include <cstring>

#include "fault.h"
#include "files.h"

namespace eecompile {
namespace {

// The `count` numbers of a file of float32.
Result<std::vector<float>> floats_of(const std::string& path, std::size_t count) {
  const Result<std::string> data = read_regular(path, static_cast<std::int64_t>(count * sizeof(float)));
  if (!data.ok()) return data.status();
  if (data->size() != count * sizeof(float)) return damaged("truncated or changed", path);
  std::vector<float> values(count);
  std::memcpy(values.data(), data->data(), data->size());
  return values;
}

Status read_cycle(const std::string& root, const CycleInfo& info, std::size_t width, CycleGate& gate) {
  const Result<std::vector<float>> values = floats_of(root + "/" + info.weights, 2 * width + 1);
  if (!values.ok()) return values.status();
  const auto middle = values->begin() + static_cast<std::ptrdiff_t>(width);
  gate = {info.threshold, info.repeats, {values->begin(), middle}, {middle, values->end() - 1},
          static_cast<double>(values->back())};
  return {};
}

}  // namespace

Status read_factors(const std::string& root, const Manifest& m, LoadedGraphs& graphs) {
  graphs.factors.resize(m.schedule.size());
  for (std::size_t k = 0; k < m.schedule.size(); ++k) {
    const Step& step = m.schedule[k];
    if (step.cycle) {
      const auto width = static_cast<std::size_t>(m.model.hidden);
      if (Status status = read_cycle(root, *step.cycle, width, graphs.cycles[k]); !status.ok()) return status;
    }
    if (step.factors.empty()) continue;
    const auto bytes = static_cast<std::size_t>(m.files.at(step.factors).bytes);
    const Result<std::vector<float>> values = floats_of(root + "/" + step.factors, bytes / sizeof(float));
    if (!values.ok()) return values.status();
    const float* next = values->data();
    const auto shapes = factor_shapes(m.segments[step.segment]);
    for (const auto& [name, shape] : *shapes) {
      Tensor tensor = Tensor::constant(graphs.memory(), "float32", shape, next);
      next += tensor.bytes() / sizeof(float);
      graphs.factors[k].emplace(name, std::move(tensor));
    }
  }
  return {};
}

}  // namespace eecompile
