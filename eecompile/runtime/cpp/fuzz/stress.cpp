// eecompile-stress: what tests ask of the library's robustness.
//
//   eecompile-stress VERB PLACE... [--name value ...]      see stress.h; prints one JSON object
//
// Exit status: 0, 1 where something broke (and says what), 2 for a usage fault.
#include "stress.h"

#include <dirent.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>

namespace eecompile::stress {

std::string Options::text(const std::string& name, const std::string& otherwise) const {
  const auto found = named.find(name);
  return found == named.end() ? otherwise : found->second;
}

std::int64_t Options::integer(const std::string& name, std::int64_t otherwise) const {
  const auto found = named.find(name);
  return found == named.end() ? otherwise : std::strtoll(found->second.c_str(), nullptr, 10);
}

void broken(const std::string& what) {
  std::fprintf(stderr, "broken: %s\n", what.c_str());
  std::_Exit(1);
}

std::int64_t descriptors() {
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir("/proc/self/fd"), closedir);
  std::int64_t count = 0;
  while (folder && readdir(folder.get()) != nullptr) ++count;
  return count;
}

}  // namespace eecompile::stress

int main(int count, char** words) {
  using namespace eecompile::stress;
  const std::map<std::string, std::function<Report(const Options&)>> verbs = {
      {"read", read_one},         {"mutate", mutate_bundles},
      {"starve", starve_all},     {"mutate-tokenizers", mutate_tokenizers},
      {"shorten", shorten_all},   {"sessions", run_sessions},
      {"tokens", run_tokens},     {"opens", run_opens},
      {"tokenize", tokenize_one}};
  const auto verb = count > 2 ? verbs.find(words[1]) : verbs.end();
  if (verb == verbs.end()) return std::fputs("usage: eecompile-stress VERB PLACE... [--name value ...]\n", stderr), 2;
  Options options;
  for (int i = 2; i < count; ++i) {
    const std::string word = words[i];
    if (word.rfind("--", 0) != 0) {
      options.places.push_back(word);
    } else if (++i < count) {
      options.named[word.substr(2)] = words[i];
    }
  }
  std::puts(verb->second(options).dump().c_str());
  return 0;
}
