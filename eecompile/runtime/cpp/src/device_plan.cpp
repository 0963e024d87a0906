#include "device_plan.h"

#include <algorithm>
#include <set>

#include "eecompile/contract.h"
#include "files.h"
#include "json.h"

namespace eecompile {
namespace {

constexpr std::int64_t kMaxPlanBytes = 16 << 20;
constexpr std::int64_t kMostSize = std::int64_t{1} << 32;
constexpr std::array<std::string_view, 2> kProfiles = {"decode", "prefill"};
constexpr std::array<std::string_view, 3> kReaches = {"never", "preferred", "required"};

std::vector<std::int64_t> dims_from(Fields& f, const char* key) {
  std::vector<std::int64_t> dims;
  for (const Json& size : f.list(key, 8)) {
    const bool fits = size.is_number_unsigned() && size.get<std::uint64_t>() <= static_cast<std::uint64_t>(kMostSize);
    if (!fits) f.fail(key, "has a size that is none");
    dims.push_back(fits ? size.get<std::int64_t>() : 0);
  }
  return dims;
}

ShapeRange range_from(const Json& value, const std::string& path, std::string& fault) {
  Fields f(value, path, fault);
  ShapeRange r{dims_from(f, "min"), dims_from(f, "opt"), dims_from(f, "max")};
  f.finish();
  const auto below = [](const std::vector<std::int64_t>& a, const std::vector<std::int64_t>& b) {
    return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](auto x, auto y) { return x <= y; });
  };
  if (!below(r.least, r.best) || !below(r.best, r.most)) f.fail("", "is not min <= opt <= max");
  return r;
}

ProfileShapes profile_from(const Json& value, const std::string& path, std::string& fault) {
  Fields f(value, path, fault);
  ProfileShapes p;
  p.name = f.choice("name", kProfiles);
  const Json& shapes = f.object("shapes");
  if (shapes.size() > 4096) f.fail("shapes", "are too many");
  for (const auto& [name, range] : shapes.items()) p.shapes[name] = range_from(range, f.path("shapes"), fault);
  f.finish();
  return p;
}

std::map<std::string, std::string> names_from(Fields& f, const char* key) {
  std::map<std::string, std::string> names;
  if (!f.has(key)) return names;
  const Json& object = f.object(key);
  if (object.size() > 4096) f.fail(key, "are too many");
  for (const auto& [name, other] : object.items()) {
    if (!other.is_string()) f.fail(key, "names something that is no text");
    names[name] = other.is_string() ? other.get<std::string>() : "";
  }
  return names;
}

GraphPlan graph_plan_from(const Json& value, const std::string& path, std::string& fault) {
  Fields f(value, path, fault);
  GraphPlan g;
  g.name = f.text("name", 64, 1);
  g.path = f.text("path", 200, 1);
  g.sha256 = f.digest("sha256");
  g.plugin = f.flag("plugin");
  for (const Json& flag : f.list("flags", 8))
    if (flag != "strongly_typed") f.fail("flags", "has one that nobody knows");
  for (const Json& profile : f.list("profiles", 8))
    g.profiles.push_back(profile_from(profile, f.path("profiles"), fault));
  g.copied = names_from(f, "copied");
  for (const char* other : {"weights", "in_place"}) f.skip(other);
  f.finish();
  if (g.profiles.empty()) f.fail("profiles", "are none");
  const bool plain = std::all_of(g.name.begin(), g.name.end(), [](char c) {
    return ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || ('0' <= c && c <= '9') || c == '_' || c == '-';
  });
  if (!plain) f.fail("name", "is not safe as a part of a path");
  return g;
}

// Why the plan is not that of the manifest's device graphs (runtime/device_plan.py); empty where it is.
std::string plan_fault(const BuildPlan& plan, const Manifest& m) {
  std::set<std::string> wanted, planned, names;
  for (const auto& [own, path] : m.device->paths) wanted.insert(path);
  for (const GraphPlan& graph : plan.graphs) {
    planned.insert(graph.path);
    names.insert(graph.name);
    const auto file = m.files.find(graph.path);
    if (file == m.files.end() || file->second.sha256 != graph.sha256)
      return graph.name + " has another SHA-256 than the manifest's";
  }
  if (planned != wanted || planned.size() != plan.graphs.size() || names.size() != plan.graphs.size())
    return "it has other graphs than the manifest";
  return "";
}

template <typename T>
void agree(Fields& f, const char* key, const T& found, const T& wanted) {
  if (found != wanted) f.fail(key, "is not the manifest's");
}

BuildPlan plan_from(const Json& document, const Manifest& m, std::string& fault) {
  Fields f(document, "", fault);
  const DeviceInfo& device = *m.device;
  BuildPlan p;
  if (f.text("format", 40) != "eecompile-build-plan") f.fail("format", "is another");
  f.integer("version", 1, 1);
  p.target = f.text("target", 64, 1);
  p.backend = f.choice("backend", kEngineBackends);
  p.compute = f.choice("compute", contract::kCompute);
  p.plugin = f.choice("plugin", kReaches);
  p.length = f.integer("length", 1, 2 * contract::kMaxContext);
  agree(f, "target", p.target, device.target);
  agree(f, "dialect", f.choice("dialect", kDialects), device.dialect);
  agree(f, "opset", f.integer("opset", 13, 64), device.opset);
  agree(f, "compute", p.compute, device.compute);
  agree(f, "cache", f.choice("cache", contract::kCaches), device.cache);
  agree(f, "precision", f.choice("precision", contract::kPrecisions), m.precision);
  agree(f, "context", f.integer("context", 1, contract::kMaxContext), m.model.context);
  agree(f, "slots", f.integer("slots", 1, 4096), m.slots);
  agree(f, "length", p.length, m.model.context + m.slack);
  p.tensorrt = f.text("tensorrt", 8);
  p.tensorrt_below = f.text("tensorrt_below", 8);
  p.cuda = f.text("cuda", 8);
  for (const Json& sm : f.list("sm", 32)) p.sm.push_back(sm.is_number_unsigned() ? sm.get<int>() : 0);
  for (const Json& graph : f.list("graphs", 4 * contract::kMaxExits))
    p.graphs.push_back(graph_plan_from(graph, "graphs." + std::to_string(p.graphs.size()), fault));
  f.finish();
  return p;
}

}  // namespace

Result<BuildPlan> read_plan(const BundleFiles& files) {
  const Manifest& m = files.manifest;
  if (!m.device)
    return Status{Code::kUsage,
                  "a bundle for the target " + m.target +
                      " has no device graphs and no engines: ONNX Runtime runs it as it is",
                  files.path, "build it for a device: eecompile build CKPT --target NAME (eecompile targets)"};
  constexpr std::string_view kAgain = "build the bundle again with `eecompile build`";
  const std::string path = files.path + "/" + m.device->plan;
  if (m.files.find(m.device->plan) == m.files.end()) return damaged("the build plan is missing", path, kAgain);
  const Result<std::string> data = read_regular(path, kMaxPlanBytes);
  if (!data.ok()) return data.status();
  const Result<Document> document = parse_object(*data, path);
  if (!document.ok()) return document.status();
  std::string fault;
  BuildPlan plan = plan_from(*document, m, fault);
  if (!fault.empty()) return damaged("not the build plan of this bundle: " + fault, path, kAgain);
  if (fault = plan_fault(plan, m); !fault.empty())
    return damaged("the build plan is not of this bundle: " + fault, path, kAgain);
  return plan;
}

}  // namespace eecompile
