#include "plugin.h"

#include <cstdio>
#include <cstring>
#include <new>

#include "kernel.cuh"

namespace eecompile {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

constexpr char kName[] = "ExitDecision", kVersion[] = "1", kNamespace[] = "";
enum Tensor { kLogits, kThresholds, kToken, kMaxProb, kMargin, kEntropy, kExitFlag, kTensors };
constexpr int kInputs = 2, kOutputs = kTensors - kInputs, kCriteria = 3;
constexpr std::int64_t kMost = 0x7fffffff;

// An engine remembers with which meaning of its inputs, outputs and workspace it was built.
constexpr char kRevisionField[] = "revision";
constexpr std::int32_t kRevision = 1;

std::int32_t refuse(const char* what) noexcept {
  complain(what);
  return 1;
}

bool fits(int at, DataType type) noexcept {
  switch (at) {
    case kLogits: return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
    case kToken: return type == DataType::kINT64;
    case kExitFlag: return type == DataType::kINT32;
    default: return type == DataType::kFLOAT;
  }
}

LogitType logit_type(DataType type) noexcept {
  if (type == DataType::kHALF) return LogitType::kFloat16;
  return type == DataType::kBF16 ? LogitType::kBFloat16 : LogitType::kFloat32;
}

bool is_linear(const nvinfer1::PluginTensorDesc& tensor) noexcept {
  return tensor.format == nvinfer1::TensorFormat::kLINEAR;
}

// Why these inputs cannot be served; nullptr where they can. A dimension of -1 is one that is not known yet.
const char* fault_of(const nvinfer1::PluginTensorDesc& logits, const nvinfer1::PluginTensorDesc& thresholds) noexcept {
  if (!fits(kLogits, logits.type)) return "logits have to be float32, float16 or bfloat16";
  if (!fits(kThresholds, thresholds.type)) return "thresholds have to be float32";
  if (!is_linear(logits) || !is_linear(thresholds)) return "logits and thresholds have to be linear";
  const Dims &rows = logits.dims, &bounds = thresholds.dims;
  if (rows.nbDims != 2 || rows.d[0] > kMost || rows.d[1] > kMost) return "logits have to be [N, V]";
  if (rows.d[1] == 0) return "logits of no token";
  if (bounds.nbDims != 2 || (bounds.d[1] != kCriteria && bounds.d[1] != -1)) return "thresholds have to be [N, 3]";
  if (rows.d[0] != bounds.d[0] && rows.d[0] != -1 && bounds.d[0] != -1) return "logits and thresholds differ in rows";
  return nullptr;
}

}  // namespace

// -- what it is ------------------------------------------------------------------------------------------------------

nvinfer1::IPluginCapability* ExitDecision::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* ExitDecision::clone() noexcept { return new (std::nothrow) ExitDecision; }

const char* ExitDecision::getPluginName() const noexcept { return kName; }
const char* ExitDecision::getPluginVersion() const noexcept { return kVersion; }
const char* ExitDecision::getPluginNamespace() const noexcept { return kNamespace; }

// -- building --------------------------------------------------------------------------------------------------------

std::int32_t ExitDecision::getNbOutputs() const noexcept { return kOutputs; }

std::int32_t ExitDecision::getOutputDataTypes(DataType* outputs, std::int32_t output_count, const DataType* inputs,
                                              std::int32_t input_count) const noexcept {
  if (input_count != kInputs || output_count != kOutputs) return refuse("two inputs and five outputs are wanted");
  if (!fits(kLogits, inputs[kLogits])) return refuse("logits have to be float32, float16 or bfloat16");
  if (!fits(kThresholds, inputs[kThresholds])) return refuse("thresholds have to be float32");
  const DataType types[kOutputs] = {DataType::kINT64, DataType::kFLOAT, DataType::kFLOAT, DataType::kFLOAT,
                                    DataType::kINT32};
  for (int i = 0; i < kOutputs; ++i) outputs[i] = types[i];
  return 0;
}

std::int32_t ExitDecision::getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t input_count,
                                           const nvinfer1::DimsExprs*, std::int32_t shape_input_count,
                                           nvinfer1::DimsExprs* outputs, std::int32_t output_count,
                                           nvinfer1::IExprBuilder&) noexcept {
  if (input_count != kInputs || output_count != kOutputs || shape_input_count != 0) {
    return refuse("two inputs, five outputs and no shape input are wanted");
  }
  if (inputs[kLogits].nbDims != 2) return refuse("logits have to be [N, V]");
  if (inputs[kThresholds].nbDims != 2) return refuse("thresholds have to be [N, 3]");
  for (int i = 0; i < kOutputs; ++i) {
    outputs[i].nbDims = 1;
    outputs[i].d[0] = inputs[kLogits].d[0];
  }
  return 0;
}

bool ExitDecision::supportsFormatCombination(std::int32_t at, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                             std::int32_t input_count, std::int32_t output_count) noexcept {
  if (input_count != kInputs || output_count != kOutputs || at < 0 || at >= kTensors) return false;
  return is_linear(tensors[at].desc) && fits(at, tensors[at].desc.type);
}

std::int32_t ExitDecision::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t input_count,
                                           const nvinfer1::DynamicPluginTensorDesc*,
                                           std::int32_t output_count) noexcept {
  if (input_count != kInputs || output_count != kOutputs) return refuse("two inputs and five outputs are wanted");
  const char* fault = fault_of(inputs[kLogits].desc, inputs[kThresholds].desc);
  return fault ? refuse(fault) : 0;
}

std::size_t ExitDecision::getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t input_count,
                                           const nvinfer1::DynamicPluginTensorDesc*, std::int32_t) const noexcept {
  if (input_count != kInputs || inputs[kLogits].max.nbDims != 2) return 0;
  const std::int64_t rows = inputs[kLogits].max.d[0], vocab = inputs[kLogits].max.d[1];
  const bool usable = rows > 0 && rows <= kMost && vocab > 0 && vocab <= kMost;
  return usable ? workspace_bytes(static_cast<int>(rows), static_cast<int>(vocab)) : 0;
}

// There is nothing but shapes and types to tell one instance from another.
const char* ExitDecision::getTimingCacheID() noexcept { return ""; }

// -- running ---------------------------------------------------------------------------------------------------------

std::int32_t ExitDecision::onShapeChange(const nvinfer1::PluginTensorDesc* inputs, std::int32_t input_count,
                                         const nvinfer1::PluginTensorDesc*, std::int32_t output_count) noexcept {
  if (input_count != kInputs || output_count != kOutputs) return refuse("two inputs and five outputs are wanted");
  const char* fault = fault_of(inputs[kLogits], inputs[kThresholds]);
  return fault ? refuse(fault) : 0;
}

// The workspace is scratch memory that other layers write to, so its counters are zeroed every time.
std::int32_t ExitDecision::enqueue(const nvinfer1::PluginTensorDesc* input_descriptions,
                                   const nvinfer1::PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                                   void* workspace, cudaStream_t stream) noexcept {
  const nvinfer1::PluginTensorDesc& logits = input_descriptions[kLogits];
  const char* fault = fault_of(logits, input_descriptions[kThresholds]);
  if (fault) return refuse(fault);
  const int rows = static_cast<int>(logits.dims.d[0]), vocab = static_cast<int>(logits.dims.d[1]);
  if (rows < 0 || vocab < 0) return refuse("a shape is not known");
  if (rows == 0) return 0;
  const Decisions out{static_cast<std::int64_t*>(outputs[kToken - kInputs]),
                      static_cast<float*>(outputs[kMaxProb - kInputs]), static_cast<float*>(outputs[kMargin - kInputs]),
                      static_cast<float*>(outputs[kEntropy - kInputs]),
                      static_cast<std::int32_t*>(outputs[kExitFlag - kInputs])};
  cudaError_t status = prepare(workspace, rows, stream);
  if (status == cudaSuccess) {
    status = launch({inputs[kLogits], logit_type(logits.type), rows, vocab, vocab},
                    static_cast<const float*>(inputs[kThresholds]), out, workspace, stream);
  }
  if (status == cudaSuccess) return 0;
  char text[64];
  std::snprintf(text, sizeof text, "the launch failed with CUDA error %d", static_cast<int>(status));
  return refuse(text);
}

nvinfer1::IPluginV3* ExitDecision::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

const nvinfer1::PluginFieldCollection* ExitDecision::getFieldsToSerialize() noexcept {
  static const nvinfer1::PluginField field{kRevisionField, &kRevision, nvinfer1::PluginFieldType::kINT32, 1};
  static const nvinfer1::PluginFieldCollection fields{1, &field};
  return &fields;
}

// -- making one ------------------------------------------------------------------------------------------------------

namespace {

// An engine's fields, as getFieldsToSerialize gave them.
bool is_ours(const nvinfer1::PluginFieldCollection* fields) noexcept {
  if (!fields || fields->nbFields != 1 || !fields->fields) return false;
  const nvinfer1::PluginField& field = fields->fields[0];
  std::int32_t revision = 0;
  if (!field.name || !field.data || std::strcmp(field.name, kRevisionField) != 0) return false;
  if (field.type != nvinfer1::PluginFieldType::kINT32 || field.length != 1) return false;
  std::memcpy(&revision, field.data, sizeof revision);
  return revision == kRevision;
}

}  // namespace

nvinfer1::IPluginV3* ExitDecisionCreator::createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                                       nvinfer1::TensorRTPhase phase) noexcept {
  if (phase == nvinfer1::TensorRTPhase::kRUNTIME && !is_ours(fields)) {
    complain("this engine was built with another revision of the plugin: build it again");
    return nullptr;
  }
  return new (std::nothrow) ExitDecision;
}

const nvinfer1::PluginFieldCollection* ExitDecisionCreator::getFieldNames() noexcept {
  static const nvinfer1::PluginFieldCollection none{0, nullptr};
  return &none;
}

const char* ExitDecisionCreator::getPluginName() const noexcept { return kName; }
const char* ExitDecisionCreator::getPluginVersion() const noexcept { return kVersion; }
const char* ExitDecisionCreator::getPluginNamespace() const noexcept { return kNamespace; }

}  // namespace eecompile
