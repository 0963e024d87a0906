#include "records.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdio>

#include <nlohmann/json.hpp>

#include "eecompile/contract.h"
#include "files.h"
#include "json.h"

namespace eecompile {
namespace {

constexpr std::int64_t kMaxRecordBytes = 4 << 20;
constexpr std::string_view kBuild = "build them on this machine with `eecompile engines BUNDLE`, or eecompile-engines";

std::vector<std::string> texts_from(Fields& f, const char* key, std::size_t most) {
  std::vector<std::string> found;
  for (const Json& value : f.list(key, most, false)) {
    if (!value.is_string()) f.fail(key, "has something that is no text");
    found.push_back(value.is_string() ? value.get<std::string>() : "");
  }
  return found;
}

EngineFile engine_from(const Json& value, const std::string& path, std::string& fault) {
  Fields f(value, path, fault);
  EngineFile e;
  e.file = f.text("file", 101, 6);
  e.onnx = f.digest("onnx");
  e.bytes = f.integer("bytes", 1, contract::kMaxFileBytes);
  e.sha256 = f.digest("sha256");
  e.profiles = texts_from(f, "profiles", 16);
  const Json& layers = f.object("layers");
  if (layers.size() > 256) f.fail("layers", "are too many");
  for (const auto& [kind, count] : layers.items()) e.layers[kind] = count.is_number_integer() ? count.get<int>() : 0;
  e.seconds = f.number("seconds", 0, 1e7);
  e.peak = f.integer_or("peak", 0, std::int64_t{1} << 50, 0);
  f.finish();
  const std::size_t dot = e.file.rfind('.');
  const auto plain = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '-'; };
  if (dot == std::string::npos || e.file.substr(dot) != ".plan" ||
      !std::all_of(e.file.begin(), e.file.begin() + static_cast<std::ptrdiff_t>(dot), plain))
    f.fail("file", "is no name of an engine");
  return e;
}

EngineRecord record_from(const Json& document, std::string& fault) {
  Fields f(document, "", fault);
  EngineRecord r;
  if (f.text("format", 40) != "eecompile-engines") f.fail("format", "is another");
  f.integer("version", 1, 1);
  r.core = f.digest("core");
  r.target = f.text("target", 64, 1);
  r.backend = f.choice("backend", kEngineBackends);
  for (const Json& sm : f.list("sm", 32)) r.sm.push_back(sm.is_number_unsigned() ? sm.get<int>() : 0);
  r.tensorrt = f.text("tensorrt", 80, 1);
  if (f.has("cuda")) r.cuda = f.text("cuda", 80, 1);
  if (f.has("plugin")) r.plugin = f.digest("plugin");
  r.built_on = f.has("built_on") ? f.text("built_on", 100000) : "";
  Fields options(f.object("options"), "options", fault);
  r.compute = options.choice("compute", contract::kCompute);
  r.stripped = options.has("stripped") && options.flag("stripped");
  r.refit = options.has("refit") && options.flag("refit");
  r.flags = texts_from(options, "flags", 64);
  options.finish();
  const Json engines = f.has("engines") ? f.object("engines") : Json();
  for (const auto& [name, value] : engines.items()) r.engines[name] = engine_from(value, "engines." + name, fault);
  f.finish();
  return r;
}

nlohmann::json json_of(const EngineFile& e) {
  return {{"file", e.file},         {"onnx", e.onnx},     {"bytes", e.bytes},     {"sha256", e.sha256},
          {"profiles", e.profiles}, {"layers", e.layers}, {"seconds", e.seconds}, {"peak", e.peak}};
}

nlohmann::json json_of(const EngineRecord& r) {
  nlohmann::json engines = nlohmann::json::object();
  for (const auto& [name, engine] : r.engines) engines[name] = json_of(engine);
  return {{"format", "eecompile-engines"},
          {"version", 1},
          {"core", r.core},
          {"target", r.target},
          {"backend", r.backend},
          {"sm", r.sm},
          {"tensorrt", r.tensorrt},
          {"cuda", r.cuda ? nlohmann::json(*r.cuda) : nlohmann::json()},
          {"plugin", r.plugin ? nlohmann::json(*r.plugin) : nlohmann::json()},
          {"built_on", r.built_on},
          {"options", {{"compute", r.compute}, {"stripped", r.stripped}, {"refit", r.refit}, {"flags", r.flags}}},
          {"engines", engines}};
}

// Major and minor version; a newer minor version runs what an older one has built, another major version does not.
std::pair<int, int> numbers(const std::string& version) {
  int major = 0, minor = 0;
  std::sscanf(version.c_str(), "%d.%d", &major, &minor);
  return {major, minor};
}

// Whether these agree in as many numbers as both say: packages leave a version's build out, or add their own.
bool same_version(std::string_view one, std::string_view other) {
  while (true) {
    const std::size_t a = std::min(one.find('.'), one.size()), b = std::min(other.find('.'), other.size());
    if (one.substr(0, a) != other.substr(0, b)) return false;
    if (a == one.size() || b == other.size()) return true;
    one.remove_prefix(a + 1);
    other.remove_prefix(b + 1);
  }
}

bool cuda_fits(const std::optional<std::string>& built, const std::string& here) {
  return !built || (numbers(*built).first == numbers(here).first && numbers(*built) <= numbers(here));
}

Status mismatch(const std::string& where, const std::string& what, const std::string& built, const std::string& found,
                const char* here = "this machine's") {
  return damaged("the engines were built for another " + what + ": " + built + ", and " + here + " is " + found, where,
                 kBuild);
}

}  // namespace

Result<EngineRecord> read_record(const std::string& folder) {
  const std::string path = folder + "/record.json";
  struct stat info{};
  if (lstat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode))
    return Status{Code::kMissingBackend, "there are no engines here", folder, std::string(kBuild)};
  const Result<std::string> data = read_regular(path, kMaxRecordBytes);
  if (!data.ok()) return data.status();
  const Result<Document> document = parse_object(*data, path);
  if (!document.ok()) return document.status();
  std::string fault;
  EngineRecord record = record_from(*document, fault);
  if (!fault.empty()) return damaged("not a record of engines: " + fault, path, kBuild);
  return record;
}

std::string text_of(const EngineRecord& record) { return json_of(record).dump(1); }

std::string text_of(const EngineFile& engine) { return json_of(engine).dump(); }

Result<EngineFile> engine_of(const std::string& text) {
  const Result<Document> document = parse_object(text, "");
  if (!document.ok()) return document.status();
  std::string fault;
  EngineFile engine = engine_from(*document, "", fault);
  if (!fault.empty())
    return Status{Code::kInternal, "the process that builds it answered " + text.substr(0, 200), "", ""};
  return engine;
}

Status write_record(const std::string& folder, const EngineRecord& record) {
  return write_whole(folder + "/record.json", text_of(record) + "\n");
}

Status check_record(const EngineRecord& record, const Here& here, const std::string& core, const BuildPlan& plan,
                    const std::string& where) {
  std::string missing;
  for (const GraphPlan& graph : plan.graphs)
    if (record.engines.find(graph.name) == record.engines.end()) missing += (missing.empty() ? "" : ", ") + graph.name;
  if (!missing.empty()) return {Code::kMissingBackend, "engines are not built: " + missing, where, std::string(kBuild)};
  if (std::find(record.sm.begin(), record.sm.end(), here.sm) == record.sm.end()) {
    std::string built;
    for (const int sm : record.sm) built += (built.empty() ? "" : ", ") + std::to_string(sm);
    return mismatch(where, "compute capability", built, std::to_string(here.sm));
  }
  if (!same_version(record.tensorrt, here.tensorrt)) return mismatch(where, "TensorRT", record.tensorrt, here.tensorrt);
  if (!cuda_fits(record.cuda, here.cuda)) return mismatch(where, "CUDA", *record.cuda, here.cuda);
  if (record.plugin && record.plugin != here.plugin)
    return mismatch(where, "plugin library", *record.plugin, here.plugin.value_or("none"));
  for (const GraphPlan& graph : plan.graphs)
    if (const std::string& onnx = record.engines.at(graph.name).onnx; onnx != graph.sha256)
      return mismatch(where, "graph " + graph.name, onnx, graph.sha256, "the bundle's");
  if (record.core != core) return mismatch(where, "bundle", record.core, core, "this one");
  return {};
}

Result<std::string> checked_engine(const std::string& folder, const EngineRecord& record, const std::string& name,
                                   bool hashed) {
  const EngineFile& engine = record.engines.at(name);
  const std::string path = folder + "/" + engine.file;
  struct stat info{};
  if (lstat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode))
    return damaged("the engine is missing", path, kBuild);
  if (info.st_size != engine.bytes)
    return damaged("truncated or changed: " + std::to_string(info.st_size) + " bytes instead of " +
                       std::to_string(engine.bytes),
                   path, kBuild);
  if (!hashed) return path;
  const Result<std::string> hash = file_sha256(path);
  if (!hash.ok()) return hash.status();
  if (*hash != engine.sha256) return damaged("changed: its SHA-256 is not the record's", path, kBuild);
  return path;
}

}  // namespace eecompile
