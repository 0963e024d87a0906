// One TensorRT engine (trt_engines.h). Thread safety: its passes take turns on the device's stream. Cost: the engine's.
#pragma once

#include <map>
#include <vector>

#include "engine.h"
#include "trt_shared.h"

namespace eecompile {

struct TrtPlaces;

class TrtEngine : public Engine, public std::enable_shared_from_this<TrtEngine> {
 public:
  // copied: of outputs that are no update in place, the inputs that they are to replace. weights: the ONNX file whose
  // weights are put into an engine without; empty where it has them.
  static Result<SharedEngine> load(std::shared_ptr<TrtShared> shared, const std::string& path, GraphInfo info,
                                   std::map<std::string, std::string> copied, const std::string& weights);
  ~TrtEngine() override;

  const GraphInfo& info() const override { return info_; }
  const std::shared_ptr<Memory>& memory() const override { return shared_->memory(); }
  Result<std::unique_ptr<Pass>> bind(const Buffers& buffers) const override;

  TrtShared& shared() const { return *shared_; }
  nvinfer1::ICudaEngine& engine() const { return *engine_; }

  // The context for passes of a profile that come once.
  Result<nvinfer1::IExecutionContext*> shared_context(const Gpu::Turn& turn, int profile) const;

 private:
  using Dims = std::vector<std::int64_t>;
  using Profile = std::map<std::string, std::pair<Dims, Dims>>;  // of each input the least and the largest shape
  using Sizes = std::map<std::string, std::int64_t>;             // what symbols stand for

  TrtEngine(std::shared_ptr<TrtShared> shared, std::string path, GraphInfo info,
            std::map<std::string, std::string> copied)
      : shared_(std::move(shared)), path_(std::move(path)), info_(std::move(info)), copied_(std::move(copied)) {}

  Status check_tensors();
  Profile profile(int index) const;
  void place_loose();
  Result<int> profile_of(const Buffers& buffers) const;
  Status place(const TensorInfo& tensor, const Buffer& buffer, const Sizes& sizes, TrtPlaces& places) const;
  Status place_output(const TensorInfo& tensor, const Buffers& buffers, const Sizes& sizes, TrtPlaces& places) const;

  std::shared_ptr<TrtShared> shared_;
  std::string path_;
  GraphInfo info_;
  std::map<std::string, std::string> copied_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::vector<const TensorInfo*> inputs_;  // a parser may drop what no node reads
  std::vector<Profile> profiles_;
  std::map<std::string, std::size_t> loose_;  // where outputs that nobody reads lie in the block for them
  mutable std::map<int, std::unique_ptr<nvinfer1::IExecutionContext>> contexts_;
};

}  // namespace eecompile
