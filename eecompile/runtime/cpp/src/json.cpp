#include "json.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "sha256.h"

namespace eecompile {
namespace {

constexpr std::size_t kFree = std::size_t{1} << 20;  // for a document's tree, besides as much as its text has

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

// What follows the string that opens at `at`.
std::size_t behind_string(std::string_view data, std::size_t at) {
  for (++at; at < data.size() && data[at] != '"'; ++at)
    if (data[at] == '\\') ++at;
  return std::min(at + 1, data.size());
}

std::size_t behind_space(std::string_view data, std::size_t at) {
  while (at < data.size() && is_space(data[at])) ++at;
  return at;
}

// Whether the string at `at` is the key "digest" of a string, and what follows that one; else `at`.
std::size_t behind_digest(std::string_view data, std::size_t at) {
  static constexpr std::string_view kKey = "\"digest\"";
  if (data.substr(at, kKey.size()) != kKey) return at;
  const std::size_t colon = behind_space(data, at + kKey.size());
  if (colon == data.size() || data[colon] != ':') return at;
  const std::size_t value = behind_space(data, colon + 1);
  return value < data.size() && data[value] == '"' ? behind_string(data, value) : at;
}

// Where the outermost object has its member "digest", with the one comma that goes with it; two ends where it has none.
std::pair<std::size_t, std::size_t> digest_span(std::string_view data) {
  int depth = 0;
  std::size_t comma = data.npos;
  for (std::size_t at = 0; at < data.size();) {
    const char c = data[at];
    if (c == '{' || c == '[') ++depth;
    if (c == '}' || c == ']') --depth;
    if (c == ',' && depth == 1) comma = at;
    const std::size_t end = c == '"' && depth == 1 ? behind_digest(data, at) : at;
    if (end != at) {
      const std::size_t next = behind_space(data, end);
      if (next < data.size() && data[next] == ',') return {at, next + 1};
      return {std::min(at, comma), end};
    }
    at = c == '"' ? behind_string(data, at) : at + 1;
  }
  return {data.size(), data.size()};
}

// Hashes the text without its whitespace outside strings.
void hash_dense(std::string_view data, Sha256& hash) {
  for (std::size_t at = 0; at < data.size();) {
    const std::size_t begin = behind_space(data, at);
    for (at = begin; at < data.size() && !is_space(data[at]);) at = data[at] == '"' ? behind_string(data, at) : at + 1;
    hash.update(data.data() + begin, at - begin);
  }
}

}  // namespace

Result<Document> parse_object(std::string_view data, const std::string& where) {
  Document document;
  const std::string fault = document.tree_.read(data, {data.size() + kFree, true});
  if (!fault.empty()) return damaged("not JSON that a reader accepts: " + fault, where);
  if (!document.tree_.root().is_object()) return damaged("not a JSON object", where);
  return Result<Document>(std::move(document));
}

std::string document_digest(std::string_view data) {
  const auto [begin, end] = digest_span(data);
  Sha256 hash;  // fed piece by piece: the text may be large, and there is one copy of it already
  hash_dense(data.substr(0, begin), hash);
  hash_dense(data.substr(end), hash);
  return hash.hex();
}

Fields::Fields(const Json& object, std::string path, std::string& fault)
    : object_(object), path_(std::move(path)), fault_(fault) {
  if (!object.is_object()) fail("", "is not an object");
}

void Fields::fail(const std::string& key, const std::string& what) {
  if (fault_.empty()) fault_ = (key.empty() ? (path_.empty() ? "document" : path_) : path(key)) + ": " + what;
}

Json Fields::any(const char* key) {
  seen_.insert(key);
  return object_.find(key);
}

bool Fields::has(const char* key) { return !any(key).is_null(); }

Json Fields::list(const char* key, std::size_t longest, bool required) {
  const Json found = any(key);
  if (found.is_null() && !required) return {};
  if (found.is_array() && found.size() <= longest) return found;
  fail(key, "is not a list of at most " + std::to_string(longest));
  return {};
}

Json Fields::object(const char* key) {
  const Json found = any(key);
  if (found.is_object()) return found;
  fail(key, "is not an object");
  return {};
}

std::int64_t Fields::integer(const char* key, std::int64_t low, std::int64_t high) {
  const Json found = any(key);
  const bool fits = found.is_number_integer() &&
                    !(found.is_number_unsigned() && found.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX));
  const std::int64_t value = fits ? found.get<std::int64_t>() : low;
  if (fits && low <= value && value <= high) return value;
  fail(key, "is not an integer from " + std::to_string(low) + " to " + std::to_string(high));
  return low;
}

std::int64_t Fields::integer_or(const char* key, std::int64_t low, std::int64_t high, std::int64_t otherwise) {
  return has(key) ? integer(key, low, high) : otherwise;
}

double Fields::number(const char* key, double low, double high) {
  const Json found = any(key);
  const double value = found.is_number() ? found.get<double>() : std::nan("");
  if (low <= value && value <= high) return value;
  fail(key, "is not a number in range");
  return low;
}

bool Fields::flag(const char* key) {
  const Json found = any(key);
  if (!found.is_boolean()) fail(key, "is neither true nor false");
  return found.is_boolean() && found.get<bool>();
}

std::string Fields::text(const char* key, std::size_t longest, std::size_t shortest) {
  const Json found = any(key);
  std::string value = found.is_string() ? found.get<std::string>() : "";
  const auto letters =
      static_cast<std::size_t>(std::count_if(value.begin(), value.end(), [](char c) { return (c & 0xC0) != 0x80; }));
  if (found.is_string() && shortest <= letters && letters <= longest) return value;
  fail(key, "is not a text of at most " + std::to_string(longest) + " characters");
  return "";
}

std::string Fields::digest(const char* key) {
  std::string value = text(key, 64, 64);
  const bool plain =
      std::all_of(value.begin(), value.end(), [](char c) { return ('0' <= c && c <= '9') || ('a' <= c && c <= 'f'); });
  if (!plain) fail(key, "is not a SHA-256");
  return value;
}

void Fields::finish() {
  for (const auto& [key, value] : object_.items())
    if (seen_.find(key) == seen_.end()) fail("", "has a member that nobody knows: " + key.substr(0, 80));
}

}  // namespace eecompile
