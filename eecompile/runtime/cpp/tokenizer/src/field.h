// Reading tokenizer.json: typed access that remembers the first thing that is wrong, so that builders need not return
// errors. What a builder makes after a fault is never used: Tokenizer::open asks for the fault first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "eecompile/status.h"
#include "json_tree.h"

namespace eecompile::tok {

using Json = json::Value;

struct Faults {
  Status first;

  void malformed(const std::string& where, const std::string& what);
  void unsupported(const std::string& where, const std::string& what);
};

// A value in the file and its path. Copies are cheap; the document and the Faults outlive it.
class Field {
 public:
  Field(const Json& json, std::string where, Faults& faults, unsigned depth = 0)
      : json_(json), where_(std::move(where)), faults_(&faults), depth_(depth) {}

  const Json& json() const { return json_; }
  const std::string& where() const { return where_; }

  // Whether `key` is there and not null.
  bool has(const char* key) const;
  Field at(const char* key) const;        // a fault where it is missing
  Field element(std::size_t index) const;  // of an array; cost: linear in the index
  std::size_t size() const;                // of an array; else 0

  // Each element of an array, in order.
  template <typename Act>
  void each(const Act& act) const {
    std::size_t index = 0;
    for (const Json one : json_) act(Field(one, where_ + "[" + std::to_string(index++) + "]", *faults_, depth_));
  }

  // The value itself; a fault, and something empty, where it is of another type.
  std::string text() const;
  bool flag() const;
  std::uint32_t number() const;
  double real() const;
  char32_t character() const;

  std::string text(const char* key, const char* otherwise) const { return has(key) ? at(key).text() : otherwise; }
  bool flag(const char* key, bool otherwise) const { return has(key) ? at(key).flag() : otherwise; }

  void malformed(const std::string& what) const { faults_->malformed(where_, what); }
  void unsupported(const std::string& what) const { faults_->unsupported(where_, what); }

 private:
  Json json_;
  std::string where_;
  Faults* faults_;
  unsigned depth_;
};

}  // namespace eecompile::tok
