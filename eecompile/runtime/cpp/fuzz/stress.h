// The verbs of eecompile-stress, and how they say what they found: one JSON object on stdout.
//
// Thread safety: each runs in its process's main thread. Cost: minutes, if asked for.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace eecompile::stress {

// `BUNDLE --name value ...`
struct Options {
  std::vector<std::string> places;
  std::map<std::string, std::string> named;

  std::string text(const std::string& name, const std::string& otherwise = "") const;
  std::int64_t integer(const std::string& name, std::int64_t otherwise) const;
};

// Something that must not be: the process says so and exits with 1.
[[noreturn]] void broken(const std::string& what);

using Report = nlohmann::ordered_json;

Report read_one(const Options& options);           // what reading a bundle takes
Report tokenize_one(const Options& options);       // what a tokenizer takes to read a text
Report mutate_bundles(const Options& options);     // documents and files of a bundle changed, and read
Report mutate_tokenizers(const Options& options);  // the same of tokenizer.json files
Report starve_all(const Options& options);         // memory that runs out at each allocation
Report shorten_all(const Options& options);        // reads that give little, are interrupted or fail; no descriptors left
Report run_sessions(const Options& options);       // many threads over one bundle
Report run_tokens(const Options& options);         // many tokens: resident memory
Report run_opens(const Options& options);          // opened and closed: descriptors and resident memory

std::int64_t descriptors();  // that this process has open

}  // namespace eecompile::stress
