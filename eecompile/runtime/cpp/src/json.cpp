#include "json.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "sha256.h"

namespace eecompile {
namespace {

constexpr int kDeepest = 64;
const Json kNothing;
const Json kEmptyList = Json::array();
const Json kEmptyObject = Json::object();

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

// The text without whitespace outside strings.
std::string dense(std::string_view data) {
  std::string out;
  out.reserve(data.size());
  bool inside = false, escaped = false;
  for (const char c : data) {
    if (!inside && is_space(c)) continue;
    if (inside) {
      inside = escaped || c != '"';
      escaped = !escaped && c == '\\';
    } else {
      inside = c == '"';
    }
    out += c;
  }
  return out;
}

}  // namespace

Result<Json> parse_object(std::string_view data, const std::string& where) {
  std::vector<std::set<std::string>> keys;
  std::string fault;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kDeepest) fault = "nested too deeply";
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end && !keys.empty()) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.empty() &&
        !keys.back().insert(parsed.get_ref<const std::string&>()).second)
      fault = "a key stands twice in one object";
    return fault.empty();
  };
  Json document = Json::parse(data.begin(), data.end(), watch, false);
  if (!fault.empty()) return damaged("not JSON that a reader accepts: " + fault, where);
  if (document.is_discarded()) return damaged("not JSON", where);
  if (!document.is_object()) return damaged("not a JSON object", where);
  return document;
}

std::string document_digest(std::string_view data) {
  std::string text = dense(data);
  int depth = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '{' || text[i] == '[') ++depth;
    if (text[i] == '}' || text[i] == ']') --depth;
    if (text[i] != '"') continue;
    std::size_t end = i + 1;
    while (end < text.size() && text[end] != '"') end += text[end] == '\\' ? 2 : 1;
    if (depth == 1 && text.compare(i, 10, "\"digest\":\"") == 0) {
      const std::size_t close = text.find('"', i + 10);
      if (close == std::string::npos) break;
      const bool last = close + 1 < text.size() && text[close + 1] != ',';
      const std::size_t from = last && text[i - 1] == ',' ? i - 1 : i;
      text.erase(from, close + (last ? 1 : 2) - from);
      break;
    }
    i = end;
  }
  return sha256(text);
}

Fields::Fields(const Json& object, std::string path, std::string& fault)
    : object_(object.is_object() ? object : kEmptyObject), path_(std::move(path)), fault_(fault) {
  if (!object.is_object()) fail("", "is not an object");
}

void Fields::fail(const std::string& key, const std::string& what) {
  if (fault_.empty()) fault_ = (key.empty() ? (path_.empty() ? "document" : path_) : path(key)) + ": " + what;
}

const Json& Fields::any(const char* key) {
  seen_.insert(key);
  const auto found = object_.find(key);
  return found == object_.end() ? kNothing : *found;
}

bool Fields::has(const char* key) { return !any(key).is_null(); }

const Json& Fields::list(const char* key, std::size_t longest, bool required) {
  const Json& found = any(key);
  if (found.is_null() && !required) return kEmptyList;
  if (found.is_array() && found.size() <= longest) return found;
  fail(key, "is not a list of at most " + std::to_string(longest));
  return kEmptyList;
}

const Json& Fields::object(const char* key) {
  const Json& found = any(key);
  if (found.is_object()) return found;
  fail(key, "is not an object");
  return kEmptyObject;
}

std::int64_t Fields::integer(const char* key, std::int64_t low, std::int64_t high) {
  const Json& found = any(key);
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
  const Json& found = any(key);
  const double value = found.is_number() ? found.get<double>() : std::nan("");
  if (low <= value && value <= high) return value;
  fail(key, "is not a number in range");
  return low;
}

bool Fields::flag(const char* key) {
  const Json& found = any(key);
  if (!found.is_boolean()) fail(key, "is neither true nor false");
  return found.is_boolean() && found.get<bool>();
}

std::string Fields::text(const char* key, std::size_t longest, std::size_t shortest) {
  const Json& found = any(key);
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
