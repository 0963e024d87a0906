// JSON that nobody vouches for: one meaning only, members in range, none unknown.
//
// Thread safety: functions of their arguments. Cost: besides the text no more than its size and 1 MB; the text stays
// where it is as long as anything of the document is asked for.
#pragma once

#include <array>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>

#include "fault.h"
#include "json_tree.h"

namespace eecompile {

using Json = json::Value;

// A document that is an object.
class Document {
 public:
  operator Json() const { return tree_.root(); }

 private:
  friend Result<Document> parse_object(std::string_view data, const std::string& where);
  json::Tree tree_;
};

// The object in `data`. Refuses duplicate keys, numbers that are not finite, nesting beyond 64, bad UTF-8, and more
// members than there is memory for.
Result<Document> parse_object(std::string_view data, const std::string& where);

// The digest of a document (digest.py): of its text without whitespace outside strings and without its top-level
// member "digest".
std::string document_digest(std::string_view data);

// The members of one object, each asked for once: the first fault is kept in `fault`, which several readers share.
class Fields {
 public:
  Fields(const Json& object, std::string path, std::string& fault);

  bool has(const char* key);                                              // present and not null
  Json any(const char* key);                                              // null where it is missing
  Json list(const char* key, std::size_t longest, bool required = true);  // an array, or null, which has no elements
  Json object(const char* key);                                           // an object, or null, which has no members
  std::int64_t integer(const char* key, std::int64_t low, std::int64_t high);
  std::int64_t integer_or(const char* key, std::int64_t low, std::int64_t high, std::int64_t otherwise);
  double number(const char* key, double low, double high);
  bool flag(const char* key);
  std::string text(const char* key, std::size_t longest, std::size_t shortest = 0);
  std::string digest(const char* key);  // 64 lower-case hexadecimal characters
  template <std::size_t N>
  std::string choice(const char* key, const std::array<std::string_view, N>& those, std::string_view otherwise = "") {
    const std::string found = otherwise.empty() || has(key) ? text(key, 200) : std::string(otherwise);
    for (const std::string_view one : those)
      if (found == one) return found;
    fail(key, "is none of those known");
    return found;
  }
  void skip(const char* key) { seen_.insert(key); }
  void finish();  // faults where a member was never asked for
  void fail(const std::string& key, const std::string& what);
  std::string path(const std::string& key) const { return path_.empty() ? key : path_ + "." + key; }

 private:
  Json object_;
  std::string path_;
  std::string& fault_;
  std::set<std::string> seen_;
};

}  // namespace eecompile
