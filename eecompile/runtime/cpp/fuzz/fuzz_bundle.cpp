// A whole directory: what the first lines say it holds ("f name", "d name", "l name" or "p name"), an empty line, and
// its manifest.
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <sstream>

#include "bundle_files.h"
#include "documents.h"

namespace {

namespace fs = std::filesystem;
namespace stress = eecompile::stress;

constexpr int kMostLines = 64;

// Whether a file of this name stays inside of the directory that it is made in.
bool stays(const std::string& name) {
  if (name.empty() || name.size() > 255 || name[0] == '/' || name.find('\0') != name.npos) return false;
  for (const fs::path& part : fs::path(name))
    if (part == "..") return false;
  return true;
}

void make(const std::string& root, const std::string& line) {
  if (line.size() < 3 || line[1] != ' ' || !stays(line.substr(2))) return;
  const std::string path = root + "/" + line.substr(2);
  std::error_code fault;
  if (fs::is_symlink(fs::path(path).parent_path(), fault)) return;
  switch (line[0]) {
    case 'd':
      return void(mkdir(path.c_str(), 0755));
    case 'l':
      return void(symlink("manifest.json", path.c_str()));
    case 'p':
      return void(mkfifo(path.c_str(), 0644));
    case 'f':
      const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0644);
      if (file >= 0) close(file);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  char pattern[] = "/tmp/eecompile-fuzz-XXXXXX";
  const char* made = mkdtemp(pattern);
  if (made == nullptr) return 0;
  const std::string root = made;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const std::size_t end = std::min(text.find("\n\n"), text.size());
  std::istringstream lines(text.substr(0, end));
  int count = 0;
  for (std::string line; count < kMostLines && std::getline(lines, line); ++count) make(root, line);
  std::error_code fault;
  const fs::file_status there = fs::symlink_status(root + "/manifest.json", fault);
  if (!fs::exists(there) || fs::is_regular_file(there))
    stress::write_file(root + "/manifest.json", end < text.size() ? stress::sealed_text(text.substr(end + 2)) : "");
  for (const eecompile::Integrity how : {eecompile::Integrity::kSize, eecompile::Integrity::kHash})
    static_cast<void>(eecompile::read_bundle(root, how));
  fs::remove_all(root, fault);
  return 0;
}
