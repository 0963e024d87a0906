// What engines were built from and for: engines/<target>/record.json, checked before any engine is deserialised
// (engines/records.py).
//
// Thread safety: functions of their arguments and of the disk. Cost: as said at each.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "device_plan.h"

namespace eecompile {

// One engine. onnx: SHA-256 of the graph that it was built from. layers: of the parsed network by kind. peak: bytes
// resident at most while it was built, 0 where it is not known.
struct EngineFile {
  std::string file, onnx, sha256;
  std::int64_t bytes = 0, peak = 0;
  std::vector<std::string> profiles;
  std::map<std::string, std::int64_t> layers;
  double seconds = 0;
};

// The engines of one target. core: digest of the bundle's manifest. cuda, plugin: nothing where none was there or
// called. stripped: the plans are without weights.
struct EngineRecord {
  std::string core, target, backend, tensorrt, built_on, compute;
  std::optional<std::string> cuda, plugin;
  std::vector<int> sm;
  bool stripped = false, refit = false;
  std::vector<std::string> flags;
  std::map<std::string, EngineFile> engines;
};

// What is here: the GPU's compute capability, versions, and the SHA-256 of the plugin library that would be loaded.
struct Here {
  int sm = 0;
  std::string tensorrt, cuda;
  std::optional<std::string> plugin;
};

// The record in `folder`. kMissingBackend where there is none, kIntegrity where it is not valid.
Result<EngineRecord> read_record(const std::string& folder);

// Replaces the record in `folder` in one step.
Status write_record(const std::string& folder, const EngineRecord& record);

// A record, or one engine's part of it, as JSON; and back from what a building process has answered.
std::string text_of(const EngineRecord& record);
std::string text_of(const EngineFile& engine);
Result<EngineFile> engine_of(const std::string& text);

// Refuses engines that are not of this machine and this bundle, naming both values.
Status check_record(const EngineRecord& record, const Here& here, const std::string& core, const BuildPlan& plan,
                    const std::string& where);

// The path of an engine that is the one recorded: in size, and if `hashed` in SHA-256 too, which reads it once.
Result<std::string> checked_engine(const std::string& folder, const EngineRecord& record, const std::string& name,
                                   bool hashed);

}  // namespace eecompile
