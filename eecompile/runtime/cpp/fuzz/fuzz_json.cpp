// Any bytes as JSON: taken and refused as nlohmann's parser does, of the same values, with the same keys twice.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "json_tree.h"

namespace {

using Json = nlohmann::json;
using eecompile::json::Value;

// The same value in the other's words; `twice` where a key stands twice in an object.
Json copied(const Value& value, bool& twice) {
  if (value.is_null()) return nullptr;
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_unsigned()) return value.get<std::uint64_t>();
  if (value.is_number_integer()) return value.get<std::int64_t>();
  if (value.is_number()) return value.get<double>();
  Json made = value.is_object() ? Json::object() : Json::array();
  for (const Value one : value) made.push_back(copied(one, twice));
  std::size_t members = made.size();
  for (const auto& [key, one] : value.items()) made[key] = copied(one, twice), ++members;
  twice = twice || members != made.size();
  if (members != value.size()) std::abort();
  for (const auto& [key, one] : made.items())
    if (value.is_object() && one.is_string() && value.find(key).get<std::string>() != one) std::abort();
  return made;
}

// What the other parser goes on or ends at, and this one refuses.
bool is_lenient(std::string_view text) {
  return text.substr(0, 3) == "\xEF\xBB\xBF" || text.find('\0') != text.npos;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  eecompile::json::Tree tree, strict;
  const std::string fault = tree.read(text, {8 * size + 8, false});
  if (fault == "not JSON" && !is_lenient(text) && Json::accept(text)) std::abort();
  if (!fault.empty()) return 0;
  const Json expected = Json::parse(text, nullptr, false);
  bool twice = false;
  if (copied(tree.root(), twice) != expected) std::abort();
  if (strict.read(text, {12 * size + 12, true}).empty() == twice) std::abort();
  return 0;
}
