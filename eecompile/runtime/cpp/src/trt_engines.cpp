#include "trt_engines.h"

#include <sys/stat.h>

#include <algorithm>
#include <set>

#include "records.h"
#include "trt_engine.h"

namespace eecompile {
namespace {

// Where engines may lie: those of the bundle's target, then those of other devices.
std::vector<std::string> folders_of(const BundleFiles& files) {
  const std::string engines = files.path + "/engines/", own = engines + files.manifest.device->target;
  std::set<std::string> others;
  for (const std::string& target : files.engine_targets) others.insert(engines + target);
  others.erase(own);
  std::vector<std::string> found = {own};
  found.insert(found.end(), others.begin(), others.end());
  return found;
}

struct Chosen {
  std::string folder;
  EngineRecord record;
};

// The engines that this machine runs, or why the first do not run here.
Result<Chosen> choose(const BundleFiles& files, const BuildPlan& plan, const Here& here) {
  Status first;
  for (const std::string& folder : folders_of(files)) {
    Result<EngineRecord> record = read_record(folder);
    Status status = record.status();
    if (record.ok() && record->backend != "tensorrt")
      status = {Code::kUnsupported, "this runtime does not run engines of " + record->backend, folder,
                "use the Python runtime, or build them with TensorRT"};
    else if (record.ok())
      status = check_record(*record, here, files.manifest.digest, plan, folder);
    if (status.ok()) return Chosen{folder, std::move(*record)};
    if (first.ok()) first = std::move(status);
  }
  return first;
}

// What captures steps that decide on the GPU, or why this machine has it not: a fault, where it was asked for.
Status add_branches(const TrtShared& shared, const std::optional<PluginLibrary>& library, const std::string& decision,
                    GraphLoader& loader) {
  loader.unbranched = "the pinned flag was asked for";
  if (decision == "pinned") return {};
  Status why{Code::kMissingBackend, "there is no plugin library, which sets conditions of CUDA graphs", "",
             std::string(kMakePlugin) + ", and name it with --plugin"};
  if (library) {
    Result<Conditions> conditions = Conditions::open(library->path);
    why = conditions.status();
    if (conditions.ok()) {
      Result<std::shared_ptr<const Branches>> made =
          Branches::open(shared.gpu_pointer(), shared.gpu_memory(), *conditions);
      why = made.status();
      if (made.ok()) loader.branches = *made;
    }
  }
  loader.unbranched = why.what;
  return decision == "conditional" ? why : Status{};
}

}  // namespace

Result<GraphLoader> open_tensorrt(const BundleFiles& files, const OpenOptions& options) {
  const Result<BuildPlan> plan = read_plan(files);
  if (!plan.ok()) return plan.status();
  std::optional<PluginLibrary> library;
  if (!options.plugin.empty()) {
    Result<PluginLibrary> found = find_plugin(options.plugin);
    if (!found.ok()) return found.status();
    library = std::move(*found);
  }
  Result<std::shared_ptr<Gpu>> gpu = Gpu::open();
  if (!gpu.ok()) return gpu.status();
  Result<std::shared_ptr<const TrtLibrary>> trt = TrtLibrary::open();
  if (!trt.ok()) return trt.status();
  const GpuFacts& facts = gpu.value()->facts();
  const Here here{facts.sm, trt.value()->version(), facts.cuda,
                  library ? std::optional(library->sha256) : std::nullopt};
  Result<Chosen> chosen = choose(files, *plan, here);
  if (!chosen.ok()) return chosen.status();
  if (!chosen->record.plugin && library && options.decision == "pinned")
    return Status{Code::kUsage, "the engines in " + chosen->folder + " call no library of the exit decision",
                  options.plugin, "leave --plugin out"};
  if (chosen->record.plugin && library)
    if (Status status = trt.value()->load_plugin(*library); !status.ok()) return status;
  Result<std::shared_ptr<TrtShared>> shared = TrtShared::make(*trt, *gpu, plan->length);
  if (!shared.ok()) return shared.status();
  GraphLoader loader;
  if (Status status = add_branches(**shared, library, options.decision, loader); !status.ok()) return status;

  std::map<std::string, GraphPlan> planned;
  for (const GraphPlan& graph : plan->graphs) planned[graph.path] = graph;
  loader.load = [root = files.path, paths = files.manifest.device->paths, planned = std::move(planned),
                 hashed = options.integrity == Integrity::kHash, chosen = std::move(*chosen),
                 shared = *shared](const GraphInfo& info) -> Result<SharedEngine> {
    const std::string& path = paths.at(info.path);
    const GraphPlan& graph = planned.at(path);
    const Result<std::string> engine = checked_engine(chosen.folder, chosen.record, graph.name, hashed);
    if (!engine.ok()) return engine.status();
    std::map<std::string, std::string> copied;
    for (const auto& [input, output] : graph.copied) copied[output] = input;
    GraphInfo own = info;
    own.path = path;
    return TrtEngine::load(shared, *engine, std::move(own), std::move(copied),
                           chosen.record.stripped ? root + "/" + path : "");
  };
  return loader;
}

}  // namespace eecompile
