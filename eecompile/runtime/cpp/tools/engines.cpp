// eecompile-engines: builds a bundle's engines on the device that they are for, without Python (engines/build.py).
//
// One process after another builds an engine each, so that a kill at any time leaves what was finished; what the record
// has of this machine, these options and these files is not built again.
#include <fcntl.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <iostream>
#include <set>

#include <nlohmann/json.hpp>

#include "engine_builder.h"
#include "gpu.h"
#include "trt_library.h"

extern char** environ;

namespace eecompile {
namespace {

constexpr const char* kHelp =
    "eecompile-engines BUNDLE [--plugin FILE] [--strip] [--refit] [--json]: build its engines on this machine\n"
    "  --plugin: the exit decision's library   --strip: plans without weights, which loading puts in from the bundle\n"
    "  --refit: plans whose weights may be replaced   --json: one object and nothing else\n";

struct Asked {
  std::string bundle, plugin, graph;  // graph: of the one engine that this process is to build
  bool stripped = false, refit = false, json = false;
};

constexpr const char* kMend = "eecompile-engines --help";

Result<Asked> parse(const std::vector<std::string>& words) {
  Asked a;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    std::string* const value = word == "--plugin" ? &a.plugin : word == "--one" ? &a.graph : nullptr;
    if (value != nullptr) {
      if (++i == words.size()) return usage(word + " has no value", kMend);
      *value = words[i];
    } else if (word == "--strip") {
      a.stripped = true;
    } else if (word == "--refit") {
      a.refit = true;
    } else if (word == "--json") {
      a.json = true;
    } else if (word.empty() || word[0] == '-' || !a.bundle.empty()) {
      return usage("there is no option " + word, kMend);
    } else {
      a.bundle = word;
    }
  }
  if (a.bundle.empty()) return usage("give a BUNDLE", kMend);
  return a;
}

std::pair<int, int> numbers(const std::string& version) {
  int major = 0, minor = 0;
  std::sscanf(version.c_str(), "%d.%d", &major, &minor);
  return {major, minor};
}

// That `first` <= `found` < `below`, where there are bounds.
Status check_version(const std::string& what, const std::string& found, const std::string& first,
                     const std::string& below) {
  if (!first.empty() && numbers(found) < numbers(first))
    return usage(what + " " + found + " is older than " + first, "update it, or build for a target that has it");
  if (!below.empty() && numbers(found) >= numbers(below))
    return usage(what + " " + found + " is not older than " + below, "build the bundle for a target that has it");
  return {};
}

// A record without engines: what all of them are to have in common. Refuses a machine that the plan is not for.
Result<EngineRecord> heading(const Asked& asked, const BundleFiles& files, const BuildPlan& plan) {
  if (plan.backend != "tensorrt")
    return Status{Code::kUnsupported, "engines of " + plan.backend + " are built by the Python command", "",
                  "eecompile engines BUNDLE"};
  const Result<GpuFacts> gpu = Gpu::read_facts();
  if (!gpu.ok()) return gpu.status();
  const Result<std::shared_ptr<const TrtLibrary>> trt = TrtLibrary::open();
  if (!trt.ok()) return trt.status();
  if (std::find(plan.sm.begin(), plan.sm.end(), gpu->sm) == plan.sm.end())
    return usage("this machine's GPU, " + gpu->name + ", is SM " + std::to_string(gpu->sm) + ", and " + plan.target +
                     " is another",
                 "run this on that device");
  const std::string& version = trt.value()->version();
  if (Status s = check_version("TensorRT", version, plan.tensorrt, plan.tensorrt_below); !s.ok()) return s;
  if (Status s = check_version("the driver's CUDA", gpu->cuda, plan.cuda, ""); !s.ok()) return s;
  if (plan.plugin == "required" && asked.plugin.empty())
    return Status{Code::kMissingBackend, "the exit decision's plugin library is missing, and these graphs need it", "",
                  "compile it on this machine: cmake on eecompile/plugins/exit_decision; then name it with --plugin"};
  EngineRecord record;
  record.core = files.manifest.digest;
  record.target = plan.target;
  record.backend = plan.backend;
  record.sm = {gpu->sm};
  record.tensorrt = version;
  record.cuda = gpu->cuda;
  record.built_on = gpu->name;
  record.compute = plan.compute;
  record.stripped = asked.stripped;
  record.refit = asked.refit;
  record.flags = builder_flags(asked.stripped, asked.refit);
  const bool decides = std::any_of(plan.graphs.begin(), plan.graphs.end(), [](const auto& g) { return g.plugin; });
  if (asked.plugin.empty() || !decides) return record;
  const Result<PluginLibrary> plugin = find_plugin(asked.plugin);
  if (!plugin.ok()) return plugin.status();
  record.plugin = plugin->sha256;
  return record;
}

// `record` with those engines of the record in `folder` that are what would be built again.
void keep_built(const std::string& folder, const BuildPlan& plan, EngineRecord& record) {
  Result<EngineRecord> old = read_record(folder);
  if (!old.ok()) return;
  const std::map<std::string, EngineFile> engines = std::exchange(old->engines, {});
  if (text_of(*old) != text_of(record)) return;
  old->engines = engines;
  for (const GraphPlan& graph : plan.graphs) {
    const auto found = engines.find(graph.name);
    if (found == engines.end() || found->second.onnx != graph.sha256) continue;
    std::vector<std::string> profiles;
    for (const ProfileShapes& profile : graph.profiles) profiles.push_back(profile.name);
    if (found->second.profiles == profiles && checked_engine(folder, *old, graph.name, true).ok())
      record.engines.insert(*found);
  }
}

std::string folder_of(const BundleFiles& files, const BuildPlan& plan) {
  return files.path + "/engines/" + plan.target;
}

BuildJob job_of(const Asked& asked, const BundleFiles& files, const BuildPlan& plan, const GraphPlan& graph) {
  const std::string folder = folder_of(files, plan);
  return {graph,          files.path + "/" + graph.path, folder + "/" + graph.name + ".plan",
          graph.plugin ? asked.plugin : "", folder + "/timing.cache", asked.stripped, asked.refit};
}

// Runs this command for one engine, whose output is its record's line.
Result<EngineFile> in_process(const Asked& asked, const std::string& graph) {
  std::vector<std::string> words = {"eecompile-engines", asked.bundle, "--one", graph};
  if (!asked.plugin.empty()) words.insert(words.end(), {"--plugin", asked.plugin});
  if (asked.stripped) words.push_back("--strip");
  if (asked.refit) words.push_back("--refit");
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return Status{Code::kInternal, "no pipe can be made", graph, ""};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  pid_t child = 0;
  const int failed = posix_spawn(&child, "/proc/self/exe", &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  std::string answer;
  char chunk[4096];
  for (ssize_t size = 0; failed == 0 && (size = read(ends[0], chunk, sizeof chunk)) != 0;) {
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) break;
    answer.append(chunk, static_cast<std::size_t>(size));
  }
  close(ends[0]);
  int status = 0;
  if (failed != 0 || waitpid(child, &status, 0) != child)
    return Status{Code::kInternal, "the process that builds it cannot be started", graph, ""};
  if (WIFSIGNALED(status)) {
    const bool killed = WTERMSIG(status) == SIGKILL;
    return Status{Code::kInternal,
                  "the process that builds it was killed by signal " + std::to_string(WTERMSIG(status)), graph,
                  killed ? "it may have run out of memory: close what else runs here, or add swap; finished engines "
                           "are kept"
                         : "run the command again: finished engines are kept"};
  }
  if (const int ended = WEXITSTATUS(status); ended != 0)  // it has said why
    return Status{ended == 4   ? Code::kIntegrity
                  : ended == 3 ? Code::kMissingBackend
                  : ended == 2 ? Code::kUsage
                               : Code::kInternal,
                  "", graph, ""};
  return engine_of(answer);
}

// One build at a time in a folder, for as long as this process lives.
Status lock(const std::string& folder) {
  const int held = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (held >= 0 && flock(held, LOCK_EX | LOCK_NB) == 0) return {};
  return {Code::kUsage, "another process builds engines here, or the folder cannot be opened", folder,
          "wait for it to end"};
}

Status build(const Asked& asked, const BundleFiles& files, const BuildPlan& plan) {
  Result<EngineRecord> record = heading(asked, files, plan);
  if (!record.ok()) return record.status();
  const std::string folder = folder_of(files, plan);
  mkdir((files.path + "/engines").c_str(), 0755);
  mkdir(folder.c_str(), 0755);
  if (Status status = lock(folder); !status.ok()) return status;
  keep_built(folder, plan, *record);
  if (Status status = write_record(folder, *record); !status.ok()) return status;
  std::vector<std::string> built;
  for (const GraphPlan& graph : plan.graphs) {
    if (record->engines.count(graph.name) > 0) continue;
    if (!asked.json) std::cerr << "build " << graph.name << "\n";
    Result<EngineFile> engine = in_process(asked, graph.name);
    if (!engine.ok()) return engine.status();
    record->engines[graph.name] = std::move(*engine);
    if (Status status = write_record(folder, *record); !status.ok()) return status;
    built.push_back(graph.name);
  }
  if (asked.json)
    std::cout << nlohmann::json{{"record", nlohmann::json::parse(text_of(*record))}, {"built", built}}.dump(1) << "\n";
  else
    std::cout << built.size() << " built, " << record->engines.size() - built.size() << " kept, by TensorRT "
              << record->tensorrt << " for SM " << record->sm[0] << "\n";
  return {};
}

Status run(const Asked& asked) {
  const Integrity integrity = asked.graph.empty() ? Integrity::kHash : Integrity::kSize;
  const Result<BundleFiles> files = read_bundle(asked.bundle, integrity);
  if (!files.ok()) return files.status();
  const Result<BuildPlan> plan = read_plan(*files);
  if (!plan.ok()) return plan.status();
  if (asked.graph.empty()) return build(asked, *files, *plan);
  for (const GraphPlan& graph : plan->graphs) {
    if (graph.name != asked.graph) continue;
    prctl(PR_SET_PDEATHSIG, SIGKILL);            // it ends with the one that started it
    const int answers = dup(STDOUT_FILENO);  // what libraries print goes to stderr
    dup2(STDERR_FILENO, STDOUT_FILENO);
    const Result<EngineFile> engine = build_engine(job_of(asked, *files, *plan, graph));
    if (!engine.ok()) return engine.status();
    const std::string text = text_of(*engine) + "\n";
    return write(answers, text.data(), text.size()) == static_cast<ssize_t>(text.size())
               ? Status{}
               : Status{Code::kInternal, "the answer cannot be written", graph.name, ""};
  }
  return usage("there is no graph " + asked.graph, kMend);
}

}  // namespace
}  // namespace eecompile

int main(int count, char** words) {
  using namespace eecompile;
  const std::vector<std::string> given(words + 1, words + count);
  if (std::find(given.begin(), given.end(), "--help") != given.end()) {
    std::cout << kHelp;
    return 0;
  }
  try {
    const Result<Asked> asked = parse(given);
    const Status status = asked.ok() ? run(*asked) : asked.status();
    if (status.ok()) return 0;
    if (!status.what.empty()) std::cerr << "eecompile-engines: " << status.text() << "\n";
    return status.exit_status();
  } catch (const std::exception& e) {
    std::cerr << "eecompile-engines: " << e.what() << "\n";
    return 1;
  }
}
