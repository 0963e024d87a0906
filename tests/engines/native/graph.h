// A graph in ONNX Runtime, on the host: what the doubles of TensorRT's engines and of its parser are made of.
#pragma once

#include <NvInferRuntime.h>
#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <string>
#include <vector>

#include "doubles.h"

namespace doubles {

using nvinfer1::DataType;
using nvinfer1::Dims;
using Shape = std::vector<std::int64_t>;

inline const OrtApi& api() {
  static const OrtApi* const found = [] {
    void* library = dlopen(setting("onnxruntime", "").c_str(), RTLD_NOW);
    if (library == nullptr) broken("no ONNX Runtime");
    return reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"))()->GetApi(ORT_API_VERSION);
  }();
  return *found;
}

inline void must(OrtStatus* status) {
  if (status != nullptr) broken(std::string("ONNX Runtime: ") + api().GetErrorMessage(status));
}

inline OrtEnv* environment() {
  static OrtEnv* const made = [] {
    OrtEnv* one = nullptr;
    OrtThreadingOptions* options = nullptr;
    must(api().CreateThreadingOptions(&options));
    must(api().SetGlobalIntraOpNumThreads(options, 1));
    must(api().CreateEnvWithGlobalThreadPools(ORT_LOGGING_LEVEL_ERROR, "double", options, &one));
    api().ReleaseThreadingOptions(options);
    return one;
  }();
  return made;
}

struct Tensor {
  std::string name;
  bool input;
  ONNXTensorElementDataType type;
  Shape shape;  // -1 where it has a symbol
  std::vector<std::string> symbols;

  std::size_t element() const {
    switch (type) {
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return 4;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return 2;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: return 8;
      default: return 1;
    }
  }
  DataType kind() const {
    switch (type) {
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return DataType::kFLOAT;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return DataType::kHALF;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: return DataType::kINT64;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8: return DataType::kINT8;
      default: return DataType::kBOOL;
    }
  }
};

inline Dims dims(const Shape& shape) {
  Dims found{};
  found.nbDims = static_cast<std::int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), found.d);
  return found;
}

struct Graph {
  explicit Graph(const std::string& path) {
    OrtSessionOptions* options = nullptr;
    must(api().CreateSessionOptions(&options));
    must(api().DisablePerSessionThreads(options));
    must(api().AddSessionConfigEntry(options, "session.qdq_matmulnbits_accuracy_level", "4"));
    must(api().CreateSession(environment(), path.c_str(), options, &session));
    api().ReleaseSessionOptions(options);
    for (const bool input : {true, false}) add(input);
  }
  ~Graph() { api().ReleaseSession(session); }

  void add(bool input) {
    OrtAllocator* allocator = nullptr;
    must(api().GetAllocatorWithDefaultOptions(&allocator));
    std::size_t count = 0;
    must((input ? api().SessionGetInputCount : api().SessionGetOutputCount)(session, &count));
    for (std::size_t i = 0; i < count; ++i) {
      char* name = nullptr;
      OrtTypeInfo* info = nullptr;
      const OrtTensorTypeAndShapeInfo* tensor = nullptr;
      std::size_t rank = 0;
      must((input ? api().SessionGetInputName : api().SessionGetOutputName)(session, i, allocator, &name));
      must((input ? api().SessionGetInputTypeInfo : api().SessionGetOutputTypeInfo)(session, i, &info));
      must(api().CastTypeInfoToTensorInfo(info, &tensor));
      must(api().GetDimensionsCount(tensor, &rank));
      Tensor t{name, input, ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, Shape(rank), {}};
      std::vector<const char*> symbols(rank);
      must(api().GetTensorElementType(tensor, &t.type));
      must(api().GetDimensions(tensor, t.shape.data(), rank));
      must(api().GetSymbolicDimensions(tensor, symbols.data(), rank));
      t.symbols.assign(symbols.begin(), symbols.end());
      tensors.push_back(t);
      must(api().AllocatorFree(allocator, name));
      api().ReleaseTypeInfo(info);
    }
  }

  const Tensor& tensor(const std::string& name) const {
    for (const Tensor& t : tensors)
      if (t.name == name) return t;
    broken("there is no tensor " + name);
  }

  OrtSession* session = nullptr;
  std::vector<Tensor> tensors;
};

}  // namespace doubles
