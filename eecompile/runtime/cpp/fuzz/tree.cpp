#include "tree.h"

#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>

namespace eecompile::stress {
namespace {

namespace fs = std::filesystem;

// Puts something at `path`, which is free: a file, a directory, a link to one of these, or a pipe.
void put(const std::string& path, Random& random) {
  switch (random.below(7)) {
    case 0:
      return write_file(path, "");
    case 1:
      return void(mkdir(path.c_str(), 0755));
    case 2:
      return void(symlink("/etc/passwd", path.c_str()));
    case 3:
      return void(symlink("manifest.json", path.c_str()));
    case 4:
      return void(symlink("/", path.c_str()));
    case 5:
      return void(symlink(fs::path(path).filename().c_str(), path.c_str()));
    default:
      return void(mkfifo(path.c_str(), 0644));
  }
}

std::string stray(Random& random) {
  static const std::array<const char*, 12> kNames = {
      "more", "segments/more.onnx", "MANIFEST.JSON", "segments/HEAD.onnx", "overlays/more.json", "a:b", "a\\b",
      "overlays/calibration-.json", "overlays/.policy.json.tmp-1-ab", "engines", "overlays/calibration-x.json", "\x01"};
  return kNames[random.below(kNames.size())];
}

}  // namespace

std::function<void()> disturb(const std::string& root, const std::vector<std::string>& names, const std::string& aside,
                              Random& random) {
  const std::size_t kind = random.below(4);
  if (kind == 0) {
    const std::string path = root + "/" + stray(random);
    put(path, random);
    return [path] { fs::remove(path); };
  }
  const std::string path = root + "/" + names[random.below(names.size())];
  if (kind == 1) {
    const std::uintmax_t size = fs::file_size(path), other = random.below(2) == 0 ? size + 1 : size / 2;
    fs::copy_file(path, aside, fs::copy_options::overwrite_existing);
    fs::resize_file(path, other);
    return [path, aside] { fs::rename(aside, path); };
  }
  fs::rename(path, aside);
  if (kind == 2) put(path, random);
  return [path, aside] {
    fs::remove(path);
    fs::rename(aside, path);
  };
}

}  // namespace eecompile::stress
