#include "files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

#include "eecompile/contract.h"
#include "fault.h"
#include "sha256.h"

namespace eecompile {
namespace {

constexpr std::size_t kMaxName = 200, kChunk = 1 << 20;
constexpr std::int64_t kMaxEntries = 4 * contract::kMaxFiles;

bool is_word(std::string_view text) {
  const auto plain = [](char c) {
    return ('0' <= c && c <= '9') || ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || c == '_';
  };
  if (text.empty() || text.size() > 100 || !plain(text[0])) return false;
  return std::all_of(text.begin(), text.end(), [&](char c) { return plain(c) || c == '.' || c == '-'; });
}

bool starts(std::string_view text, std::string_view with) { return text.substr(0, with.size()) == with; }

bool ends(std::string_view text, std::string_view with) {
  return text.size() >= with.size() && text.substr(text.size() - with.size()) == with;
}

// overlays/.NAME.tmp-PID-HEX: what a writer was at when it was killed.
bool is_temporary(std::string_view name) { return starts(name, "overlays/.") && name.find(".tmp-") != name.npos; }

class File {
 public:
  File(int number, std::int64_t bytes) : number_(number), bytes_(bytes) {}
  ~File() {
    if (number_ >= 0) close(number_);
  }
  File(File&& other) noexcept : number_(other.number_), bytes_(other.bytes_) { other.number_ = -1; }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  File& operator=(File&&) = delete;

  std::int64_t bytes() const { return bytes_; }  // when it was opened

  // Reads up to `size` bytes, fewer only at the end; negative where that fails.
  std::int64_t fill(char* data, std::size_t size) const {
    std::size_t done = 0;
    while (done < size) {
      const ssize_t count = read(number_, data + done, size - done);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return -1;
      if (count == 0) break;
      done += static_cast<std::size_t>(count);
    }
    return static_cast<std::int64_t>(done);
  }

 private:
  int number_;
  std::int64_t bytes_;
};

Status unreadable(const std::string& path) {
  return damaged(std::string("the file cannot be read (") + std::strerror(errno) + ")", path,
                 "check its type and its permissions");
}

Result<File> open_regular(const std::string& path) {
  const int number = open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (number < 0 && errno == ENOENT) return damaged("the file is missing", path);
  if (number < 0 && errno == ELOOP)
    return damaged("the file is a symbolic link", path, "copy the files themselves (cp -rL)");
  if (number < 0) return unreadable(path);
  struct stat info{};
  const bool regular = fstat(number, &info) == 0 && S_ISREG(info.st_mode);
  File file(number, info.st_size);
  if (!regular) return damaged("not a regular file", path);
  return file;
}

}  // namespace

std::string name_fault(std::string_view name) {
  const auto letters = std::count_if(name.begin(), name.end(), [](char c) { return (c & 0xC0) != 0x80; });
  if (name.empty() || static_cast<std::size_t>(letters) > kMaxName)
    return "the path is empty or longer than 200 characters";
  const auto odd = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F || c == '\\' || c == ':'; };
  if (std::any_of(name.begin(), name.end(), odd))
    return "the path holds a backslash, a colon or a character that cannot be printed";
  if (name[0] == '/') return "the path is absolute";
  for (std::size_t begin = 0; begin <= name.size();) {
    const std::size_t end = std::min(name.find('/', begin), name.size());
    const std::string_view part = name.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") return "the path has an empty, '.' or '..' component";
    begin = end + 1;
  }
  return "";
}

bool is_overlay(std::string_view name) {
  if (name == contract::kPolicy) return true;
  if (!ends(name, ".json")) return false;
  for (const std::string_view kind : {"overlays/calibration-", "overlays/profile-"})
    if (starts(name, kind) && name.size() > kind.size() + 5)
      return is_word(name.substr(kind.size(), name.size() - kind.size() - 5));
  return false;
}

bool is_outside_core(std::string_view name) {
  const std::string_view suffix = contract::kSignatureSuffix;
  const std::string_view signed_one = ends(name, suffix) ? name.substr(0, name.size() - suffix.size()) : name;
  return signed_one == contract::kManifest || is_overlay(signed_one) || name == contract::kReport ||
         starts(name, "engines/") || is_temporary(name);
}

Result<std::map<std::string, std::int64_t>> list_files(const std::string& root) {
  std::map<std::string, std::int64_t> sizes;
  std::vector<std::string> pending = {""};
  std::int64_t entries = 0;
  while (!pending.empty()) {
    const std::string folder = pending.back();
    pending.pop_back();
    const std::unique_ptr<DIR, int (*)(DIR*)> open_folder(opendir((root + "/" + folder).c_str()), closedir);
    if (!open_folder)
      return damaged(std::string("the directory cannot be read (") + std::strerror(errno) + ")", root + "/" + folder,
                     "check its permissions");
    while (const dirent* entry = readdir(open_folder.get())) {
      const std::string_view own = entry->d_name;
      if (own == "." || own == "..") continue;
      const std::string name = folder + std::string(own), path = root + "/" + name;
      if (++entries > kMaxEntries)
        return damaged("more than " + std::to_string(kMaxEntries) + " files and directories", root);
      struct stat info{};
      if (lstat(path.c_str(), &info) != 0) return damaged("the file cannot be looked at", path);
      if (S_ISLNK(info.st_mode))
        return damaged("a symbolic link, which a bundle may not hold", path, "copy the files themselves (cp -rL)");
      if (!S_ISDIR(info.st_mode) && !S_ISREG(info.st_mode))
        return damaged("neither a regular file nor a directory", path, "remove it from the bundle");
      if (const std::string fault = name_fault(name); !fault.empty())
        return damaged("not a legal name: " + fault, path, "remove it from the bundle");
      if (S_ISDIR(info.st_mode)) {
        pending.push_back(name + "/");
      } else {
        sizes[name] = info.st_size;
      }
    }
  }
  return sizes;
}

Result<std::string> read_regular(const std::string& path, std::int64_t limit) {
  const Result<File> file = open_regular(path);
  if (!file.ok()) return file.status();
  std::string data(static_cast<std::size_t>(std::clamp<std::int64_t>(file->bytes(), 0, limit) + 1), '\0');
  const std::int64_t count = file->fill(data.data(), data.size());
  if (count < 0) return unreadable(path);
  if (count > file->bytes() && count <= limit) return damaged("the file grows while it is read", path);
  if (count > limit)
    return damaged("the file has more than the " + std::to_string(limit) + " bytes that a reader accepts", path);
  data.resize(static_cast<std::size_t>(count));
  return data;
}

Status write_whole(const std::string& path, std::string_view data) {
  const std::size_t slash = path.rfind('/') + 1;
  const std::string temporary =
      path.substr(0, slash) + "." + path.substr(slash) + ".tmp-" + std::to_string(getpid());
  const int file = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
  bool good = file >= 0;
  while (good && !data.empty()) {
    const ssize_t written = write(file, data.data(), data.size());
    if (written < 0 && errno == EINTR) continue;
    good = written > 0;
    data.remove_prefix(good ? static_cast<std::size_t>(written) : 0);
  }
  good = good && fsync(file) == 0;
  if (file >= 0) good = close(file) == 0 && good;
  if (good && rename(temporary.c_str(), path.c_str()) == 0) return {};
  const std::string why = std::strerror(errno);
  unlink(temporary.c_str());
  return {Code::kInternal, "the file cannot be written (" + why + ")", path, "check its permissions and free space"};
}

Result<std::string> file_sha256(const std::string& path) {
  const Result<File> file = open_regular(path);
  if (!file.ok()) return file.status();
  const std::unique_ptr<char[]> buffer(new char[kChunk]);
  Sha256 hash;
  while (true) {
    const std::int64_t count = file->fill(buffer.get(), kChunk);
    if (count < 0) return unreadable(path);
    hash.update(buffer.get(), static_cast<std::size_t>(count));
    if (count < static_cast<std::int64_t>(kChunk)) return hash.hex();
  }
}

}  // namespace eecompile
