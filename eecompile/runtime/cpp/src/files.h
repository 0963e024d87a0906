// The files of a bundle: regular ones only, inside it, of names that mean the same everywhere.
//
// Thread safety: functions of their arguments and of the disk. Cost: as said at each.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "eecompile/status.h"

namespace eecompile {

// Why `name` may not be a file of a bundle (relative, POSIX, inside, portable); empty where it may.
std::string name_fault(std::string_view name);

bool is_overlay(std::string_view name);       // the policy, a calibration or a profile
bool is_outside_core(std::string_view name);  // may lie in a bundle without being listed in its manifest

// Bytes of every file under `root` by its name in the bundle. Refuses links, special files and illegal names.
Result<std::map<std::string, std::int64_t>> list_files(const std::string& root);

// The content of a regular file of at most `limit` bytes; never follows a link, never waits on a FIFO.
Result<std::string> read_regular(const std::string& path, std::int64_t limit);

// Replaces `path` by a file of `data`, through a temporary beside it.
Status write_whole(const std::string& path, std::string_view data);

// SHA-256 of a regular file, a megabyte at a time.
Result<std::string> file_sha256(const std::string& path);

}  // namespace eecompile
