// JSON documents changed at random, and given the digest of what they then say.
//
// Thread safety: functions of their arguments. Cost: a walk through the document for each change.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace eecompile::stress {

using Json = nlohmann::json;

// The same numbers on every machine (splitmix64).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next();
  std::size_t below(std::size_t count) { return static_cast<std::size_t>(next() % count); }

 private:
  std::uint64_t state_;
};

// Replaces, removes, repeats or nudges one to three members.
void mutate(Json& document, Random& random);

// Replaces one to four bytes.
void scratch(std::string& text, Random& random);

// A document as it stands on disk, with the digest of what it says.
std::string sealed(Json document);

// The same of a text, whose layout stays: what stands in its own "digest" is replaced, where that is a text.
std::string sealed_text(std::string text);

std::string read_file(const std::string& path);  // "" where it cannot be read
void write_file(const std::string& path, std::string_view text);

}  // namespace eecompile::stress
