// Weights for a stripped engine, from the ONNX file that it was built from; on the GPU, after deserialising
// (engines/refit.py). Thread safety: the engine's. Cost: the file's weights, once more while they are put in.
#pragma once

#include "trt_shared.h"

namespace eecompile {

// Puts the weights of the graph at `onnx`, and of the files it names, into `engine`. kIntegrity where they do not fit
// or some are missing; kUnsupported where this was compiled without the ONNX parser's header.
Status refit(TrtShared& shared, nvinfer1::ICudaEngine& engine, const std::string& onnx);

}  // namespace eecompile
