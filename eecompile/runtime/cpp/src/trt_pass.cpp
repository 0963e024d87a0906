#include "trt_pass.h"

#include "device_pass.h"

namespace eecompile {
namespace {

class TrtPass : public DevicePass {
 public:
  TrtPass(std::shared_ptr<const TrtEngine> engine, TrtPlaces places)
      : engine_(std::move(engine)), places_(std::move(places)) {}

  ~TrtPass() override {
    const Gpu::Turn turn(gpu());
    if (graph_ != nullptr) gpu().driver().cuGraphExecDestroy(graph_);
    context_.reset();
  }

  Status run() override {
    const Gpu::Turn turn(gpu());
    const PassClock clock;
    if (Status status = start(turn); !status.ok()) return status;
    if (Status status = gpu().wait(turn); !status.ok()) return status;
    if (context_ && graph_ == nullptr && !uncaptured_) capture(turn);
    return {};
  }

  Status warm(const Gpu::Turn& turn) override {
    if (context_) return {};
    if (Status status = settle(turn); !status.ok()) return status;
    return enqueue(turn, *context_);
  }

  Status enqueue(const Gpu::Turn& turn) override { return enqueue(turn, *context_); }

 private:
  Gpu& gpu() const { return engine_->shared().gpu(); }

  Status start(const Gpu::Turn& turn) {
    if (graph_ != nullptr) return gpu().checked(gpu().driver().cuGraphLaunch(graph_, gpu().stream()), "cuGraphLaunch");
    if (context_) return enqueue(turn, *context_);
    if (!ran_) {
      const Result<nvinfer1::IExecutionContext*> shared = engine_->shared_context(turn, places_.profile);
      if (!shared.ok()) return shared.status();
      ran_ = true;
      if (Status status = prepare(**shared); !status.ok()) return status;
      return enqueue(turn, **shared);
    }
    if (Status status = settle(turn); !status.ok()) return status;
    return enqueue(turn, *context_);
  }

  // Makes a context of this pass's own.
  Status settle(const Gpu::Turn& turn) {
    Result<std::unique_ptr<nvinfer1::IExecutionContext>> own =
        engine_->shared().context(turn, engine_->engine(), places_.profile);
    if (!own.ok()) return own.status();
    if (Status status = prepare(**own); !status.ok()) return status;
    context_ = std::move(*own);
    return {};
  }

  // Sets every shape and address of this pass.
  Status prepare(nvinfer1::IExecutionContext& context) const {
    const auto refused = [&](const std::string& name) {
      return Status{Code::kInternal, "TensorRT refuses the shape or address of " + name, where(), ""};
    };
    for (const auto& [name, shape] : places_.shapes)
      if (!context.setInputShape(name.c_str(), shape)) return refused(name);
    for (const auto& [name, address] : places_.addresses)
      if (!context.setTensorAddress(name.c_str(), address)) return refused(name);
    return {};
  }

  Status enqueue(const Gpu::Turn& turn, nvinfer1::IExecutionContext& context) const {
    if (!context.enqueueV3(gpu().stream()))
      return {Code::kInternal, "TensorRT could not enqueue a pass: " + engine_->shared().log().said(), where(), ""};
    for (const TrtPlaces::Copy& copy : places_.copies)
      if (Status status = gpu().copy(turn, copy.target, copy.source, copy.bytes); !status.ok()) return status;
    return {};
  }

  void capture(const Gpu::Turn& turn) {
    const Result<CudaGraphExec> made = gpu().capture(turn, [&] { return enqueue(turn, *context_); });
    uncaptured_ = !made.ok();
    if (made.ok()) graph_ = *made;
  }

  const std::string& where() const { return engine_->info().path; }

  std::shared_ptr<const TrtEngine> engine_;
  TrtPlaces places_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  CudaGraphExec graph_ = nullptr;
  bool ran_ = false, uncaptured_ = false;
};

}  // namespace

std::unique_ptr<Pass> make_pass(std::shared_ptr<const TrtEngine> engine, TrtPlaces places) {
  return std::make_unique<TrtPass>(std::move(engine), std::move(places));
}

}  // namespace eecompile
