#include "trt_shared.h"

#include <algorithm>

#include "eecompile/contract.h"
#include "fault.h"
#include "files.h"

namespace eecompile {

Result<std::shared_ptr<TrtShared>> TrtShared::make(std::shared_ptr<const TrtLibrary> library, std::shared_ptr<Gpu> gpu,
                                                   std::int64_t length) {
  const std::shared_ptr<TrtShared> made(new TrtShared());
  made->library_ = std::move(library);
  made->gpu_ = std::move(gpu);
  made->memory_ = made->gpu_memory_ = std::make_shared<GpuMemory>(made->gpu_, length);
  made->runtime_ = made->library_->runtime(made->log_);
  if (!made->runtime_)
    return Status{Code::kMissingBackend, "TensorRT does not start: " + made->log_.said(), "", "check its installation"};
  return made;
}

TrtShared::~TrtShared() {
  if (!gpu_) return;
  const Gpu::Turn turn(*gpu_);
  runtime_.reset();
}

Result<std::unique_ptr<nvinfer1::ICudaEngine>> TrtShared::deserialise(const std::string& path) {
  const Result<std::string> data = read_regular(path, contract::kMaxFileBytes);
  if (!data.ok()) return data.status();
  const Gpu::Turn turn(*gpu_);
  std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime_->deserializeCudaEngine(data->data(), data->size()));
  if (engine) return engine;
  return damaged("TensorRT cannot load this engine: " + log_.said(), path, "build the engines on this machine again");
}

void TrtShared::need(Kind kind, std::size_t bytes) { needs_[kind] = std::max(needs_[kind], bytes); }

void TrtShared::allocate() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const Kind kind : {kScratch, kLoose})
    if (!blocks_[kind]) blocks_[kind] = gpu_memory_->scratch(needs_[kind]);
}

Result<std::unique_ptr<nvinfer1::IExecutionContext>> TrtShared::context(const Gpu::Turn&,
                                                                        nvinfer1::ICudaEngine& engine, int profile) {
  std::unique_ptr<nvinfer1::IExecutionContext> made(
      engine.createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
  if (!made)
    return Status{Code::kInternal, "TensorRT cannot create an execution context: " + log_.said(), "",
                  "free memory of the GPU"};
  made->setDeviceMemoryV2(block(kScratch), static_cast<std::int64_t>(needs_[kScratch]));
  if (!made->setOptimizationProfileAsync(profile, gpu_->stream()))
    return Status{Code::kInternal, "TensorRT refuses optimisation profile " + std::to_string(profile), "", ""};
  return made;
}

}  // namespace eecompile
