#include "bundle_files.h"

#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <memory>
#include <thread>

#include "eecompile/contract.h"
#include "fault.h"
#include "files.h"

namespace eecompile {
namespace {

using Sizes = std::map<std::string, std::int64_t>;

constexpr std::string_view kNotHere = "give the directory that `eecompile build` wrote";
constexpr unsigned kHashThreads = 4;

Status check_files(const std::string& root, const Manifest& m, const Sizes& sizes) {
  std::map<std::string, std::string> folded;
  for (const auto& [name, size] : sizes) {
    std::string lower = name;
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](char c) { return 'A' <= c && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    if (const auto [other, fresh] = folded.emplace(lower, name); !fresh)
      return damaged("the names " + other->second + " and " + name + " are one on some file systems", root);
    if (m.files.find(name) == m.files.end() && !is_outside_core(name))
      return damaged("a file that the manifest does not list", root + "/" + name, "remove it from the bundle");
  }
  for (const auto& [name, info] : m.files) {
    const auto found = sizes.find(name);
    if (found == sizes.end()) return damaged("the file is missing", root + "/" + name);
    if (found->second != info.bytes)
      return damaged(
          "truncated or changed: " + std::to_string(found->second) + " bytes instead of " + std::to_string(info.bytes),
          root + "/" + name);
  }
  return {};
}

// Hashes files until none is left or one is not as it was; several threads take turns.
Status hash_some(const std::string& root, const std::vector<std::pair<std::string, FileInfo>>& files,
                 std::atomic<std::size_t>& next) {
  for (std::size_t i = next++; i < files.size(); i = next++) {
    const std::string path = root + "/" + files[i].first;
    const Result<std::string> hash = file_sha256(path);
    if (!hash.ok()) return hash.status();
    if (*hash != files[i].second.sha256) return damaged("changed: its SHA-256 is not the manifest's", path);
  }
  return {};
}

Status check_hashes(const std::string& root, const Manifest& m) {
  std::vector<std::pair<std::string, FileInfo>> files(m.files.begin(), m.files.end());
  std::sort(files.begin(), files.end(), [](const auto& a, const auto& b) { return a.second.bytes > b.second.bytes; });
  std::atomic<std::size_t> next = 0;
  std::vector<std::future<Status>> running;
  for (unsigned i = 0; i < std::clamp(std::thread::hardware_concurrency(), 1u, kHashThreads); ++i)
    running.push_back(std::async(std::launch::async, [&] { return hash_some(root, files, next); }));
  Status status;
  for (std::future<Status>& one : running) {
    Status own = one.get();
    if (status.ok()) status = std::move(own);
  }
  return status;
}

// The folders of engines/ that have a record.
std::vector<std::string> engine_targets(const Sizes& sizes) {
  constexpr std::string_view kFolder = "engines/", kRecord = "/record.json";
  std::vector<std::string> found;
  for (const auto& [name, size] : sizes) {
    const std::size_t end = name.rfind('/');
    if (name.rfind(kFolder, 0) == 0 && end > kFolder.size() && name.substr(end) == kRecord)
      found.push_back(name.substr(kFolder.size(), end - kFolder.size()));
  }
  return found;
}

Status read_overlays(BundleFiles& files, const Sizes& sizes) {
  bool found = false, profiled = false;
  for (const auto& [name, size] : sizes) {
    if (!is_overlay(name)) continue;
    const std::string path = files.path + "/" + name;
    const Result<std::string> data = read_regular(path, contract::kMaxOverlayBytes);
    if (!data.ok()) return data.status();
    if (name.rfind("overlays/profile-", 0) == 0) {
      const Result<Profile> read = read_profile(*data, files.manifest, path);
      if (!read.ok()) return read.status();
      if (!profiled) files.each_pass = pass_rows(*read);
      profiled = true;
      continue;
    }
    if (name != contract::kPolicy) {
      Result<Calibration> read = read_calibration(*data, files.manifest, path);
      if (!read.ok()) return read.status();
      files.calibrations.push_back(std::move(read).value());
      continue;
    }
    Result<Policy> read = read_policy(*data, files.manifest, path);
    if (!read.ok()) return read.status();
    files.policy = std::move(read).value();
    found = true;
  }
  return found ? Status{} : damaged("there is no policy", files.path + "/" + std::string(contract::kPolicy));
}

}  // namespace

Result<BundleFiles> read_bundle(const std::string& path, Integrity integrity) {
  BundleFiles files;
  struct stat info{};
  const std::unique_ptr<char, void (*)(void*)> resolved(realpath(path.c_str(), nullptr), free);
  files.path = resolved ? resolved.get() : path;
  if (stat(files.path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode))
    return damaged("there is no bundle here: not a directory", path, kNotHere);
  const std::string manifest = files.path + "/" + std::string(contract::kManifest);
  if (lstat(manifest.c_str(), &info) != 0) return damaged("there is no bundle here: no manifest.json", path, kNotHere);
  const Result<std::string> data = read_regular(manifest, contract::kMaxManifestBytes);
  if (!data.ok()) return data.status();
  Result<Manifest> read = read_manifest(*data, manifest);
  if (!read.ok()) return read.status();
  files.manifest = std::move(read).value();
  const Result<Sizes> sizes = list_files(files.path);
  if (!sizes.ok()) return sizes.status();
  if (Status status = check_files(files.path, files.manifest, *sizes); !status.ok()) return status;
  files.engine_targets = engine_targets(*sizes);
  if (integrity == Integrity::kHash)
    if (Status status = check_hashes(files.path, files.manifest); !status.ok()) return status;
  if (Status status = read_overlays(files, *sizes); !status.ok()) return status;
  const std::string rule = files.manifest.generates() ? files.policy.kv : "";
  const std::string fault = confident_fault(files.manifest, files.policy, files.calibrations, rule);
  if (!fault.empty())
    return damaged(fault, files.path + "/" + std::string(contract::kPolicy),
                   "restore it from a copy of the bundle, or build the bundle again");
  return files;
}

}  // namespace eecompile
