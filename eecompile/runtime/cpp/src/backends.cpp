#include "backends.h"

#include <sched.h>

#include <algorithm>

#include "eecompile/contract.h"
#include "gpu_memory.h"
#include "ort.h"

#ifdef EECOMPILE_TENSORRT
#include "trt_engines.h"
#include "trt_library.h"
#endif

namespace eecompile {
namespace {

int processors() {
  cpu_set_t mine;
  return sched_getaffinity(0, sizeof mine, &mine) == 0 ? std::max(1, CPU_COUNT(&mine)) : 1;
}

Result<GraphLoader> on_host(const BundleFiles& files, const OpenOptions& options) {
  const auto library = OrtLibrary::open(options.onnxruntime, options.threads == 0 ? processors() : options.threads);
  if (!library.ok()) return library.status();
  const bool varied = !files.manifest.generates();
  return GraphLoader{[root = files.path, shared = *library, varied](const GraphInfo& info) {
    return open_ort(shared, root + "/" + info.path, info, {}, varied);
  }};
}

Result<GraphLoader> on_cuda(const BundleFiles& files, const OpenOptions& options) {
  const auto library = OrtLibrary::open(options.onnxruntime, options.threads == 0 ? processors() : options.threads);
  if (!library.ok()) return library.status();
  if (Status status = library.value()->check_cuda(); !status.ok()) return status;
  const Result<std::shared_ptr<Gpu>> gpu = Gpu::open();
  if (!gpu.ok()) return gpu.status();
  const auto memory =
      std::make_shared<GpuMemory>(*gpu, files.manifest.model.context + files.manifest.slack);
  return GraphLoader{[root = files.path, shared = *library, place = OrtGpu{*gpu, memory}](const GraphInfo& info) {
    return open_ort(shared, root + "/" + info.path, info, place);
  }};
}

Result<LoadedGraphs> loaded(const std::string& root, const Manifest& m, const LoadEngine& load) {
  LoadedGraphs graphs;
  Status status;
  const auto one = [&](const GraphInfo& info) -> SharedEngine {
    if (!status.ok()) return nullptr;
    Result<SharedEngine> engine = load(info);
    if (!engine.ok()) status = engine.status();
    return engine.ok() ? *engine : nullptr;
  };
  graphs.embed = one(m.embed);
  graphs.head = one(m.head);
  if (m.source_graph) graphs.encoder = one(*m.source_graph);
  for (const GraphInfo& info : m.segments) graphs.segments.push_back(one(info));
  for (const GraphInfo& info : m.exit_graphs) graphs.exits.push_back(one(info));
  for (std::size_t i = 0; i < m.heads.size(); ++i) graphs.heads[m.heads[i].name] = one(m.small_heads[i]);
  for (const std::optional<GraphInfo>& info : m.kv) graphs.kv.push_back(info ? one(*info) : nullptr);
  if (status.ok()) status = read_factors(root, m, graphs);
  if (!status.ok()) return status;
  return graphs;
}

#ifdef EECOMPILE_TENSORRT
Result<GraphLoader> on_tensorrt(const BundleFiles& files, const OpenOptions& options) {
  return open_tensorrt(files, options);
}
#else
Result<GraphLoader> on_tensorrt(const BundleFiles&, const OpenOptions&) {
  return Status{Code::kMissingBackend, "this library was compiled without TensorRT", "",
                "compile it with -DEECOMPILE_TENSORRT=ON, or use the back end onnxruntime"};
}
#endif

// The back end that "auto" stands for.
std::string chosen(const BundleFiles& files) {
  if (!files.manifest.device || files.engine_targets.empty()) return "onnxruntime";
#ifdef EECOMPILE_TENSORRT
  if (Gpu::read_facts().ok() && TrtLibrary::open().ok()) return "tensorrt";
#endif
  return "onnxruntime";
}

Status check_decision(const OpenOptions& options, const std::string& backend) {
  const auto& known = contract::kDecisions;
  if (std::find(known.begin(), known.end(), options.decision) == known.end())
    return {Code::kUsage, "there is no decision " + options.decision, "", "decisions: auto, pinned, conditional"};
  if (options.plugin.empty() || backend == "tensorrt") return {};
  return {Code::kUsage, "engines alone call the exit decision's library, and the back end is " + backend,
          options.plugin, "leave --plugin out, or name --backend tensorrt"};
}

}  // namespace

Result<LoadedGraphs> load_graphs(const BundleFiles& files, const OpenOptions& options) {
  const std::string backend = options.backend == "auto" ? chosen(files) : options.backend;
  if (Status status = check_decision(options, backend); !status.ok()) return status;
  Result<GraphLoader> loader = backend == "onnxruntime" ? on_host(files, options)
                               : backend == "tensorrt"  ? on_tensorrt(files, options)
                               : backend == "cuda"      ? on_cuda(files, options)
                                                        : usage("there is no back end " + backend,
                                                                "back ends: auto, onnxruntime, tensorrt, cuda");
  if (!loader.ok()) return loader.status();
  if (options.decision == "conditional" && !loader->branches)
    return Status{Code::kUsage, "nothing decides on a GPU here: " + loader->unbranched, "", "leave out --decision"};
  Result<LoadedGraphs> graphs = loaded(files.path, files.manifest, loader->load);
  if (!graphs.ok()) return graphs;
  graphs->backend = backend;
  graphs->branches = std::move(loader->branches);
  graphs->unbranched = std::move(loader->unbranched);
  return graphs;
}

}  // namespace eecompile
