// A double of TensorRT's builder and ONNX parser: a plan is JSON that names the ONNX file and the profiles.
#include <NvInfer.h>
#include <NvOnnxParser.h>

#include <csignal>
#include <deque>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "graph.h"
#include "stubs.h"

using nlohmann::json;
using namespace nvinfer1;
using doubles::broken, doubles::setting;

namespace {

struct HostMemoryImpl : StubHostMemory {
  std::string text;
  void* data() const noexcept override { return const_cast<char*>(text.data()); }
  std::size_t size() const noexcept override { return text.size(); }
};

struct HostMemory : IHostMemory {
  HostMemoryImpl impl;
  explicit HostMemory(std::string text) {
    impl.text = std::move(text);
    mImpl = &impl;
  }
};

struct TensorImpl : StubTensor {
  std::string name;
  const char* getName() const noexcept override { return name.c_str(); }
};

struct NetworkTensor : ITensor {
  TensorImpl impl;
  explicit NetworkTensor(std::string name) {
    impl.name = std::move(name);
    mImpl = &impl;
  }
};

struct LayerImpl : StubLayer {
  LayerType getType() const noexcept override { return LayerType::kMATRIX_MULTIPLY; }
};

struct Layer : ILayer {
  LayerImpl impl;
  Layer() { mLayer = &impl; }
};

struct NetworkImpl : StubNetworkDefinition {
  std::string onnx;
  std::deque<NetworkTensor> inputs;
  mutable Layer layer;

  std::int32_t getNbLayers() const noexcept override { return 1; }
  ILayer* getLayer(std::int32_t) const noexcept override { return &layer; }
  std::int32_t getNbInputs() const noexcept override { return static_cast<std::int32_t>(inputs.size()); }
  ITensor* getInput(std::int32_t i) const noexcept override {
    return const_cast<NetworkTensor*>(&inputs[static_cast<std::size_t>(i)]);
  }
};

struct Network : INetworkDefinition {
  NetworkImpl impl;
  Network() { mImpl = &impl; }
};

struct ProfileImpl : StubOptimizationProfile {
  json shapes = json::object();
  bool setDimensions(const char* name, OptProfileSelector which, const Dims& dims) noexcept override {
    shapes[name][static_cast<std::size_t>(which)] = std::vector<std::int64_t>(dims.d, dims.d + dims.nbDims);
    return true;
  }
};

struct Profile : IOptimizationProfile {
  ProfileImpl impl;
  Profile() { mImpl = &impl; }
};

struct TimingCacheImpl : StubTimingCache {
  std::string text;
  IHostMemory* serialize() const noexcept override { return new HostMemory(text + "timed "); }
};

struct TimingCache : ITimingCache {
  TimingCacheImpl impl;
  explicit TimingCache(std::string text) {
    impl.text = std::move(text);
    mImpl = &impl;
  }
};

struct ConfigImpl : StubBuilderConfig {
  std::set<BuilderFlag> flags = {BuilderFlag::kTF32};
  json profiles = json::array();
  int streams = -1;

  void clearFlag(BuilderFlag flag) noexcept override { flags.erase(flag); }
  void setFlag(BuilderFlag flag) noexcept override { flags.insert(flag); }
  void setMaxAuxStreams(std::int32_t most) noexcept override { streams = most; }
  std::int32_t addOptimizationProfile(const IOptimizationProfile* profile) noexcept override {
    profiles.push_back(static_cast<const Profile*>(profile)->impl.shapes);
    return static_cast<std::int32_t>(profiles.size()) - 1;
  }
  ITimingCache* createTimingCache(const void* data, std::size_t bytes) const noexcept override {
    return new TimingCache(std::string(static_cast<const char*>(data), bytes));
  }
  bool setTimingCache(const ITimingCache&, bool) noexcept override { return true; }
};

struct Config : IBuilderConfig {
  ConfigImpl impl;
  Config() { mImpl = &impl; }
};

struct BuilderImpl : StubBuilder {
  ILogger* logger = nullptr;
  std::deque<Profile> profiles;

  INetworkDefinition* createNetworkV2(NetworkDefinitionCreationFlags flags) noexcept override {
    if (!(flags & 1U << static_cast<unsigned>(NetworkDefinitionCreationFlag::kSTRONGLY_TYPED)))
      broken("a network that is not strongly typed");
    return new Network();
  }
  IBuilderConfig* createBuilderConfig() noexcept override { return new Config(); }
  IOptimizationProfile* createOptimizationProfile() noexcept override { return &profiles.emplace_back(); }
  IHostMemory* buildSerializedNetwork(INetworkDefinition& network, IBuilderConfig& config) noexcept override {
    const ConfigImpl& how = static_cast<Config&>(config).impl;
    const std::string& onnx = static_cast<Network&>(network).impl.onnx;
    if (how.flags.count(BuilderFlag::kTF32) || how.streams != 0) broken("a plan that a graph cannot use");
    if (onnx.find(setting("kill", "nothing")) != std::string::npos) std::raise(SIGKILL);
    if (onnx.find(setting("fail", "nothing")) != std::string::npos) {
      logger->log(ILogger::Severity::kERROR, "the double has no kernel for it");
      return nullptr;
    }
    return new HostMemory(json{{"onnx", onnx},
                               {"profiles", how.profiles},
                               {"stripped", how.flags.count(BuilderFlag::kSTRIP_PLAN) > 0}}
                              .dump());
  }
};

struct Builder : IBuilder {
  BuilderImpl impl;
  explicit Builder(ILogger* logger) {
    impl.logger = logger;
    mImpl = &impl;
  }
};

struct Fault : nvonnxparser::IParserError {
  const char* desc() const override { return "the double knows no such operator"; }
  const char* nodeName() const override { return "n7"; }
  const char* nodeOperator() const override { return "Odd"; }
};

struct Parser : nvonnxparser::IParser {
  NetworkImpl* network;
  Fault fault;
  explicit Parser(NetworkImpl& one) : network(&one) {}

  bool parseFromFile(const char* file, int) noexcept override {
    network->onnx = file;
    if (network->onnx.find(setting("unparsed", "nothing")) != std::string::npos) return false;
    const doubles::Graph graph(file);
    for (const doubles::Tensor& t : graph.tensors)
      if (t.input) network->inputs.emplace_back(t.name);
    return true;
  }
  int getNbErrors() const noexcept override { return 1; }
  const nvonnxparser::IParserError* getError(int) const noexcept override { return &fault; }
};

}  // namespace

extern "C" {
void* createInferBuilder_INTERNAL(void* logger, std::int32_t) noexcept {
  return static_cast<IBuilder*>(new Builder(static_cast<ILogger*>(logger)));
}
void* createNvOnnxParser_INTERNAL(void* network, void*, std::int32_t) noexcept {
  auto* found = static_cast<Network*>(static_cast<INetworkDefinition*>(network));
  return static_cast<nvonnxparser::IParser*>(new Parser(found->impl));
}
}
