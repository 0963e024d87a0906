#include "backends.h"

#include <sched.h>

#include <algorithm>
#include <functional>

#include "ort.h"

namespace eecompile {
namespace {

using Load = std::function<Result<SharedEngine>(const GraphInfo&)>;

int processors() {
  cpu_set_t mine;
  return sched_getaffinity(0, sizeof mine, &mine) == 0 ? std::max(1, CPU_COUNT(&mine)) : 1;
}

Result<Load> on_host(const BundleFiles& files, const OpenOptions& options) {
  const auto library = OrtLibrary::open(options.onnxruntime, options.threads == 0 ? processors() : options.threads);
  if (!library.ok()) return library.status();
  return Load([root = files.path, shared = *library, varied = !files.manifest.generates()](const GraphInfo& info) {
    return open_ort(shared, root + "/" + info.path, info, varied);
  });
}

Result<LoadedGraphs> loaded(const std::string& root, const Manifest& m, const Load& load) {
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

}  // namespace

Result<LoadedGraphs> load_graphs(const BundleFiles& files, const OpenOptions& options) {
  const Result<Load> load = on_host(files, options);
  if (!load.ok()) return load.status();
  return loaded(files.path, files.manifest, *load);
}

}  // namespace eecompile
