#include "engine_builder.h"

#include <NvInfer.h>
#include <NvOnnxParser.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <set>

#include "files.h"
#include "sha256.h"
#include "trt_library.h"

namespace eecompile {
namespace {

using nvinfer1::LayerType;

#if NV_TENSORRT_MAJOR > 10  // every network is
constexpr std::uint32_t kStronglyTyped = 0;
#else
constexpr std::uint32_t kStronglyTyped =
    1U << static_cast<std::uint32_t>(nvinfer1::NetworkDefinitionCreationFlag::kSTRONGLY_TYPED);
#endif

Status failed(std::string what, const std::string& where, std::string mend = "") {
  return {Code::kInternal, std::move(what), where, std::move(mend)};
}

// The kinds of layers that a report tells apart, by the names of Python's enumeration.
std::string kind_of(LayerType type) {
  switch (type) {
    case LayerType::kDEQUANTIZE:
      return "DEQUANTIZE";
    case LayerType::kTOPK:
      return "TOPK";
    case LayerType::kPLUGIN_V3:
      return "PLUGIN_V3";
    case LayerType::kMATRIX_MULTIPLY:
      return "MATRIX_MULTIPLY";
#if NV_TENSORRT_MAJOR > 10 || NV_TENSORRT_MINOR >= 14
    case LayerType::kATTENTION_INPUT:
      return "ATTENTION_INPUT";
#endif
#if NV_TENSORRT_MAJOR > 10 || NV_TENSORRT_MINOR >= 16
    case LayerType::kROTARY_EMBEDDING:
      return "ROTARY_EMBEDDING";
    case LayerType::kKVCACHE_UPDATE:
      return "KV_CACHE_UPDATE";
#endif
    default:
      return "OTHER";
  }
}

// Bytes that were resident in this process at most; 0 where the system does not say.
std::int64_t peak_bytes() {
  std::ifstream file("/proc/self/status");
  for (std::string word; file >> word;)
    if (word == "VmHWM:") {
      std::int64_t kilobytes = 0;
      file >> kilobytes;
      return kilobytes * 1024;
    }
  return 0;
}

std::string said(const nvonnxparser::IParser& parser) {
  std::string text;
  for (int i = 0; i < std::min(parser.getNbErrors(), 4); ++i) {
    const nvonnxparser::IParserError* fault = parser.getError(i);
    text += (i == 0 ? "" : "; ") + std::string("node ") + fault->nodeName() + " (" + fault->nodeOperator() +
            "): " + std::string(fault->desc()).substr(0, 600);
  }
  return text.empty() ? "it does not say why" : text;
}

// Where no fused kernel has an attention's form, several may do it.
void let_attention_decompose(nvinfer1::INetworkDefinition& network) {
#if NV_TENSORRT_MAJOR > 10 || NV_TENSORRT_MINOR >= 14
  for (int i = 0; i < network.getNbLayers(); ++i) {
    nvinfer1::ILayer* layer = network.getLayer(i);
    if (layer->getType() != LayerType::kATTENTION_INPUT) continue;
    static_cast<nvinfer1::IAttentionInputLayer*>(layer)->getAttention()->setDecomposable(true);
  }
#else
  static_cast<void>(network);
#endif
}

nvinfer1::Dims dims_of(const std::vector<std::int64_t>& shape) {
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), dims.d);
  return dims;
}

Status add_profile(nvinfer1::IBuilder& builder, nvinfer1::IBuilderConfig& config, const ProfileShapes& profile,
                   const std::set<std::string>& inputs, const std::string& where) {
  using nvinfer1::OptProfileSelector;
  nvinfer1::IOptimizationProfile* made = builder.createOptimizationProfile();  // the builder's
  for (const auto& [name, range] : profile.shapes) {
    if (inputs.count(name) == 0)
      return failed("the profile " + profile.name + " names " + name + ", which is no input", where);
    const bool set = made->setDimensions(name.c_str(), OptProfileSelector::kMIN, dims_of(range.least)) &&
                     made->setDimensions(name.c_str(), OptProfileSelector::kOPT, dims_of(range.best)) &&
                     made->setDimensions(name.c_str(), OptProfileSelector::kMAX, dims_of(range.most));
    if (!set) return failed("the profile " + profile.name + " is not valid for " + name, where);
  }
  return config.addOptimizationProfile(made) < 0 ? failed("the profile " + profile.name + " is not valid", where)
                                                 : Status{};
}

Status add_profiles(nvinfer1::IBuilder& builder, nvinfer1::IBuilderConfig& config,
                    const nvinfer1::INetworkDefinition& network, const GraphPlan& graph) {
  std::set<std::string> inputs;
  for (int i = 0; i < network.getNbInputs(); ++i) inputs.insert(network.getInput(i)->getName());
  for (const ProfileShapes& profile : graph.profiles)
    if (Status status = add_profile(builder, config, profile, inputs, graph.name); !status.ok()) return status;
  return {};
}

std::string_view view_of(const nvinfer1::IHostMemory& memory) {
  return {static_cast<const char*>(memory.data()), memory.size()};
}

// The flags of a configuration whose plans a captured graph and its session can use: one stream, and products in the
// types that the graph says.
void set_flags(nvinfer1::IBuilderConfig& config, const BuildJob& job) {
  using nvinfer1::BuilderFlag;
  config.setMaxAuxStreams(0);
  config.clearFlag(BuilderFlag::kTF32);
  if (job.refit) config.setFlag(BuilderFlag::kREFIT);
  if (job.stripped && !job.refit) config.setFlag(BuilderFlag::kREFIT_IDENTICAL);
  if (job.stripped) config.setFlag(BuilderFlag::kSTRIP_PLAN);
}

// The shared cache set into `config`, begun anew where another version or GPU wrote the file.
std::unique_ptr<nvinfer1::ITimingCache> timing_cache(nvinfer1::IBuilderConfig& config, const std::string& path) {
  struct stat info{};
  const bool there = lstat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
  const Result<std::string> data = there ? read_regular(path, std::int64_t{1} << 30) : Result<std::string>("");
  const std::string bytes = data.ok() ? *data : "";
  std::unique_ptr<nvinfer1::ITimingCache> cache(config.createTimingCache(bytes.data(), bytes.size()));
  if (cache && config.setTimingCache(*cache, false)) return cache;
  cache.reset(config.createTimingCache(nullptr, 0));
  if (cache) config.setTimingCache(*cache, false);
  return cache;
}

Status register_plugin(const TrtLibrary& trt, const std::string& path) {
  if (path.empty()) return {};
  const Result<PluginLibrary> plugin = find_plugin(path);
  return plugin.ok() ? trt.load_plugin(*plugin) : plugin.status();
}

template <typename T>
std::unique_ptr<T> made_by(void* function, void* of, nvinfer1::ILogger* log, std::int32_t version) {
  using Create2 = void* (*)(void*, std::int32_t);
  using Create3 = void* (*)(void*, void*, std::int32_t);
  if (function == nullptr) return nullptr;
  void* made = of == nullptr ? reinterpret_cast<Create2>(function)(log, version)
                             : reinterpret_cast<Create3>(function)(of, log, version);
  return std::unique_ptr<T>(static_cast<T*>(made));
}

}  // namespace

std::vector<std::string> builder_flags(bool stripped, bool refit) {
  std::vector<std::string> flags = {"STRONGLY_TYPED"};
  if (refit || stripped) flags.push_back(refit ? "REFIT" : "REFIT_IDENTICAL");
  if (stripped) flags.push_back("STRIP_PLAN");
  return flags;
}

Result<EngineFile> build_engine(const BuildJob& job) {
  const auto begun = std::chrono::steady_clock::now();
  const std::string& where = job.graph.name;
  const Result<std::shared_ptr<const TrtLibrary>> library = TrtLibrary::open();
  if (!library.ok()) return library.status();
  const TrtLibrary& trt = **library;
  if (Status status = register_plugin(trt, job.plugin); !status.ok()) return status;
  TrtLog log;
  const auto builder =
      made_by<nvinfer1::IBuilder>(trt.symbol("createInferBuilder_INTERNAL"), nullptr, &log, NV_TENSORRT_VERSION);
  if (!builder)
    return Status{Code::kMissingBackend, "TensorRT cannot build on this machine: " + log.said(), where,
                  "copy the bundle to the device and run this there"};
  const std::unique_ptr<nvinfer1::INetworkDefinition> network(builder->createNetworkV2(kStronglyTyped));
  const auto parser = made_by<nvonnxparser::IParser>(trt.parser_symbol("createNvOnnxParser_INTERNAL"), network.get(),
                                                     &log, NV_ONNX_PARSER_VERSION);  // keeps the weights
  if (!network || !parser)
    return Status{Code::kMissingBackend, "TensorRT's ONNX parser is not here: " + log.said(), where, "install it"};
  constexpr int kFaults = static_cast<int>(nvinfer1::ILogger::Severity::kERROR);
  if (!parser->parseFromFile(job.onnx.c_str(), kFaults))
    return failed("the parser refuses it: " + said(*parser), where);
  EngineFile built;
  for (int i = 0; i < network->getNbLayers(); ++i) ++built.layers[kind_of(network->getLayer(i)->getType())];
  if (job.graph.plugin && !job.plugin.empty() && built.layers.count("PLUGIN_V3") == 0)
    return failed("the exit decision did not become the plugin: there is no PLUGIN_V3 layer", where,
                  "a plugin library for this TensorRT: compile it on this machine");
  let_attention_decompose(*network);
  const std::unique_ptr<nvinfer1::IBuilderConfig> config(builder->createBuilderConfig());
  set_flags(*config, job);
  if (Status status = add_profiles(*builder, *config, *network, job.graph); !status.ok()) return status;
  const std::unique_ptr<nvinfer1::ITimingCache> cache = timing_cache(*config, job.timing_cache);
  const std::unique_ptr<nvinfer1::IHostMemory> plan(builder->buildSerializedNetwork(*network, *config));
  if (!plan) return failed("no engine came of it: " + log.said(), where);
  const std::string_view bytes = view_of(*plan);
  if (Status status = write_whole(job.out, bytes); !status.ok()) return status;
  const std::unique_ptr<nvinfer1::IHostMemory> times(cache ? cache->serialize() : nullptr);
  if (times)
    if (Status status = write_whole(job.timing_cache, view_of(*times)); !status.ok()) return status;
  for (const ProfileShapes& profile : job.graph.profiles) built.profiles.push_back(profile.name);
  built.file = job.out.substr(job.out.rfind('/') + 1);
  built.onnx = job.graph.sha256;
  built.bytes = static_cast<std::int64_t>(bytes.size());
  built.sha256 = sha256(bytes);
  built.peak = peak_bytes();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begun;
  built.seconds = static_cast<double>(static_cast<std::int64_t>(seconds.count() * 1000)) / 1000;
  return built;
}

}  // namespace eecompile
