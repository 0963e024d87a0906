#include "trt_refit.h"

#include "fault.h"

#ifdef EECOMPILE_ONNX_PARSER
#include <NvOnnxParser.h>
#endif

namespace eecompile {

#ifdef EECOMPILE_ONNX_PARSER

Status refit(TrtShared& shared, nvinfer1::ICudaEngine& engine, const std::string& onnx) {
  constexpr std::string_view kMend = "copy the bundle again, or build its engines without --strip";
  using Create = void* (*)(void*, void*, std::int32_t);
  const auto create = reinterpret_cast<Create>(shared.library().symbol("createInferRefitter_INTERNAL"));
  const auto parse = reinterpret_cast<Create>(shared.library().parser_symbol("createNvOnnxParserRefitter_INTERNAL"));
  if (create == nullptr || parse == nullptr)
    return {Code::kMissingBackend, "the engines are without weights, and TensorRT's ONNX parser is not here", onnx,
            "install it, or build the engines without --strip"};
  const Gpu::Turn turn(shared.gpu());
  auto* logger = static_cast<nvinfer1::ILogger*>(&shared.log());
  const std::unique_ptr<nvinfer1::IRefitter> refitter(
      static_cast<nvinfer1::IRefitter*>(create(&engine, logger, NV_TENSORRT_VERSION)));
  if (!refitter) return damaged("TensorRT makes no refitter: " + shared.log().said(), onnx, kMend);
  const std::unique_ptr<nvonnxparser::IParserRefitter> parser(
      static_cast<nvonnxparser::IParserRefitter*>(parse(refitter.get(), logger, NV_ONNX_PARSER_VERSION)));
  if (!parser || !parser->refitFromFile(onnx.c_str())) {
    const auto* fault = parser && parser->getNbErrors() > 0 ? parser->getError(0) : nullptr;
    return damaged("its weights do not fit the engine: " +
                       std::string(fault == nullptr ? "the parser does not say why" : fault->desc()),
                   onnx, kMend);
  }
  if (const int missing = refitter->getMissingWeights(0, nullptr); missing > 0)
    return damaged(std::to_string(missing) + " weights of the engine are not in it", onnx, kMend);
  if (!refitter->refitCudaEngine()) return damaged("TensorRT does not take its weights", onnx, kMend);
  return {};
}

#else

Status refit(TrtShared&, nvinfer1::ICudaEngine&, const std::string& onnx) {
  return {Code::kUnsupported, "the engines are without weights, and this was compiled without NvOnnxParser.h", onnx,
          "build the engines without --strip"};
}

#endif

}  // namespace eecompile
