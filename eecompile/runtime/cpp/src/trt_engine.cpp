#include "trt_engine.h"

#include <algorithm>
#include <array>
#include <limits>
#include <set>

#include "eecompile/contract.h"
#include "fault.h"
#include "trt_pass.h"
#include "trt_refit.h"

namespace eecompile {
namespace {

constexpr std::array<std::pair<std::string_view, nvinfer1::DataType>, 5> kTrtDtypes = {
    {{"float32", nvinfer1::DataType::kFLOAT},
     {"float16", nvinfer1::DataType::kHALF},
     {"int64", nvinfer1::DataType::kINT64},
     {"int8", nvinfer1::DataType::kINT8},
     {"bool", nvinfer1::DataType::kBOOL}}};

std::vector<std::int64_t> dims_of(const nvinfer1::Dims& dims) {
  return {dims.d, dims.d + std::max(dims.nbDims, 0)};
}

std::string shown(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (const std::int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

bool inside(const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& least,
            const std::vector<std::int64_t>& most) {
  if (shape.size() != least.size() || shape.size() != most.size()) return false;
  for (std::size_t i = 0; i < shape.size(); ++i)
    if (shape[i] < least[i] || shape[i] > most[i]) return false;
  return true;
}

void add_sizes(const TensorInfo& tensor, const std::vector<std::int64_t>& shape,
               std::map<std::string, std::int64_t>& sizes) {
  for (std::size_t i = 0; i < tensor.shape.size() && i < shape.size(); ++i)
    if (tensor.shape[i] < 0) sizes[tensor.symbols[i]] = std::max(sizes[tensor.symbols[i]], shape[i]);
}

std::vector<std::int64_t> shape_of(const TensorInfo& tensor, const std::map<std::string, std::int64_t>& sizes) {
  std::vector<std::int64_t> shape = tensor.shape;
  for (std::size_t i = 0; i < shape.size(); ++i)
    if (shape[i] < 0) {
      const auto size = sizes.find(tensor.symbols[i]);
      shape[i] = size == sizes.end() ? 0 : size->second;
    }
  return shape;
}

}  // namespace

Result<SharedEngine> TrtEngine::load(std::shared_ptr<TrtShared> shared, const std::string& path, GraphInfo info,
                                     std::map<std::string, std::string> copied, const std::string& weights) {
  Result<std::unique_ptr<nvinfer1::ICudaEngine>> engine = shared->deserialise(path);
  if (!engine.ok()) return engine.status();
  const std::shared_ptr<TrtEngine> made(
      new TrtEngine(std::move(shared), path, std::move(info), std::move(copied)));
  made->engine_ = std::move(*engine);
  if (!weights.empty())
    if (Status status = refit(*made->shared_, *made->engine_, weights); !status.ok()) return status;
  if (Status status = made->check_tensors(); !status.ok()) return status;
  for (int i = 0; i < made->engine_->getNbOptimizationProfiles(); ++i) made->profiles_.push_back(made->profile(i));
  made->place_loose();
  made->shared_->need(TrtShared::kScratch, static_cast<std::size_t>(made->engine_->getDeviceMemorySizeV2()));
  return SharedEngine(made);
}

TrtEngine::~TrtEngine() {
  const Gpu::Turn turn(shared_->gpu());
  contexts_.clear();
  engine_.reset();
}

// That the engine's tensors are the graph's.
Status TrtEngine::check_tensors() {
  std::set<std::string> names;
  for (int i = 0; i < engine_->getNbIOTensors(); ++i) names.insert(engine_->getIOTensorName(i));
  std::set<std::string> known;
  const auto wrong = [&](const std::string& what) {
    return damaged("the engine has " + what, path_,
                   "build the engines on this machine with `eecompile engines BUNDLE`");
  };
  for (const bool input : {true, false})
    for (const TensorInfo& tensor : input ? info_.inputs : info_.outputs) {
      known.insert(tensor.name);
      if (names.count(tensor.name) == 0) {
        if (!input) return wrong("no " + tensor.name);
        continue;
      }
      if (input) inputs_.push_back(&tensor);
      const auto dtype =
          std::find_if(kTrtDtypes.begin(), kTrtDtypes.end(), [&](const auto& d) { return d.first == tensor.dtype; });
      if (dtype == kTrtDtypes.end() || engine_->getTensorDataType(tensor.name.c_str()) != dtype->second)
        return wrong(tensor.name + " of another type than " + tensor.dtype);
    }
  for (const std::string& name : names)
    if (known.count(name) == 0) return wrong(name + ", which its graph has not");
  return {};
}

TrtEngine::Profile TrtEngine::profile(int index) const {
  Profile found;
  for (const TensorInfo* tensor : inputs_) {
    const char* name = tensor->name.c_str();
    const Dims shape = dims_of(engine_->getTensorShape(name));
    if (std::find(shape.begin(), shape.end(), -1) == shape.end()) {
      found[tensor->name] = {shape, shape};
      continue;
    }
    const auto bound = [&](nvinfer1::OptProfileSelector which) {
      return dims_of(engine_->getProfileShape(name, index, which));
    };
    found[tensor->name] = {bound(nvinfer1::OptProfileSelector::kMIN), bound(nvinfer1::OptProfileSelector::kMAX)};
  }
  return found;
}

// TensorRT has to be given a place for each output. All at once, since a later layer may read what an earlier one has
// put out.
void TrtEngine::place_loose() {
  Sizes most;
  for (const Profile& profile : profiles_)
    for (const TensorInfo* tensor : inputs_) add_sizes(*tensor, profile.at(tensor->name).second, most);
  std::size_t end = 0;
  for (const TensorInfo& tensor : info_.outputs) {
    if (copied_.count(tensor.name) == 0 && tensor.symbol(contract::kLength) >= 0) continue;
    const Buffer whole{nullptr, tensor.dtype, shape_of(tensor, most)};
    loose_[tensor.name] = end;
    end += (whole.bytes() + kGpuAlignment - 1) / kGpuAlignment * kGpuAlignment;
  }
  shared_->need(TrtShared::kLoose, end);
}

// The first profile that these shapes are inside of.
Result<int> TrtEngine::profile_of(const Buffers& buffers) const {
  for (std::size_t i = 0; i < profiles_.size(); ++i) {
    const auto holds = [&](const TensorInfo* tensor) {
      const auto& [least, most] = profiles_[i].at(tensor->name);
      return inside(buffers.find(tensor->name)->second.shape, least, most);
    };
    if (std::all_of(inputs_.begin(), inputs_.end(), holds)) return static_cast<int>(i);
  }
  std::string found;
  for (std::size_t i = 0; i < std::min<std::size_t>(inputs_.size(), 2); ++i)
    found += (i == 0 ? "" : ", ") + inputs_[i]->name + " " + shown(buffers.find(inputs_[i]->name)->second.shape);
  return Status{Code::kUsage, "no optimisation profile of the engine takes " + found, path_,
                "build the bundle again for as many rows, slots and tokens"};
}

Result<std::unique_ptr<Pass>> TrtEngine::bind(const Buffers& buffers) const {
  Sizes sizes;
  for (const TensorInfo& tensor : info_.inputs) {
    const auto found = buffers.find(tensor.name);
    if (found == buffers.end())
      return Status{Code::kInternal, "the graph's input " + tensor.name + " has no buffer", info_.path, ""};
    add_sizes(tensor, found->second.shape, sizes);
  }
  const Result<int> profile = profile_of(buffers);
  if (!profile.ok()) return profile.status();
  shared_->allocate();
  TrtPlaces places;
  places.profile = *profile;
  for (const TensorInfo* tensor : inputs_) {
    const Buffer& buffer = buffers.find(tensor->name)->second;
    if (Status status = place(*tensor, buffer, sizes, places); !status.ok()) return status;
    nvinfer1::Dims dims{};
    dims.nbDims = static_cast<std::int32_t>(buffer.shape.size());
    std::copy(buffer.shape.begin(), buffer.shape.end(), dims.d);
    places.shapes[tensor->name] = dims;
  }
  for (const TensorInfo& tensor : info_.outputs)
    if (Status status = place_output(tensor, buffers, sizes, places); !status.ok()) return status;
  return make_pass(shared_from_this(), std::move(places));
}

Status TrtEngine::place(const TensorInfo& tensor, const Buffer& buffer, const Sizes& sizes, TrtPlaces& places) const {
  if (buffer.shape != shape_of(tensor, sizes) || buffer.dtype != tensor.dtype)
    return {Code::kInternal, tensor.name + " is bound to " + buffer.dtype + " " + shown(buffer.shape), info_.path, ""};
  places.addresses[tensor.name] = buffer.data;
  return shared_->gpu_memory()->check(buffer, tensor.name);
}

// Where it is bound to; one that nobody reads, or that replaces an input after the pass, lies in the block for those.
Status TrtEngine::place_output(const TensorInfo& tensor, const Buffers& buffers, const Sizes& sizes,
                               TrtPlaces& places) const {
  const auto buffer = buffers.find(tensor.name);
  if (buffer != buffers.end())
    if (Status status = place(tensor, buffer->second, sizes, places); !status.ok()) return status;
  const auto copied = copied_.find(tensor.name);
  if (copied == copied_.end() && buffer != buffers.end()) return {};
  const auto loose = loose_.find(tensor.name);
  if (loose == loose_.end()) return {Code::kInternal, "the cache " + tensor.name + " has no buffer", info_.path, ""};
  std::byte* address = shared_->block(TrtShared::kLoose) + loose->second;
  places.addresses[tensor.name] = address;
  if (copied == copied_.end()) return {};
  const Buffer& target = buffers.find(copied->second)->second;
  places.copies.push_back({target.data, address, target.bytes()});
  return {};
}

Result<nvinfer1::IExecutionContext*> TrtEngine::shared_context(const Gpu::Turn& turn, int profile) const {
  std::unique_ptr<nvinfer1::IExecutionContext>& kept = contexts_[profile];
  if (kept) return kept.get();
  Result<std::unique_ptr<nvinfer1::IExecutionContext>> made = shared_->context(turn, *engine_, profile);
  if (!made.ok()) return made.status();
  kept = std::move(*made);
  return kept.get();
}

}  // namespace eecompile
