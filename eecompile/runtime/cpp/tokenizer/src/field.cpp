#include "field.h"

#include <limits>

#include "utf8.h"

namespace eecompile::tok {

namespace {

constexpr unsigned kDeepestSequence = 32;  // sequences within sequences: a file may not overflow the stack

}  // namespace

void Faults::malformed(const std::string& where, const std::string& what) {
  if (first.ok()) first = {Code::kIntegrity, what, where, "use the tokenizer.json that the checkpoint came with"};
}

void Faults::unsupported(const std::string& where, const std::string& what) {
  if (first.ok()) first = {Code::kUnsupported, what, where, "tokenize in Python, or give prompts as token ids"};
}

bool Field::has(const char* key) const {
  return !json_.find(key).is_null();
}

Field Field::at(const char* key) const {
  const std::string where = where_ + "." + key;
  if (has(key) && depth_ < kDeepestSequence) return {json_.find(key), where, *faults_, depth_ + 1};
  faults_->malformed(where, has(key) ? "is nested too deep" : "is missing");
  return {Json(), where, *faults_};
}

Field Field::element(std::size_t index) const {
  return {json_[index], where_ + "[" + std::to_string(index) + "]", *faults_, depth_};
}

std::size_t Field::size() const { return json_.is_array() ? json_.size() : 0; }

std::string Field::text() const {
  if (json_.is_string()) return json_.get<std::string>();
  malformed("is not text");
  return "";
}

bool Field::flag() const {
  if (json_.is_boolean()) return json_.get<bool>();
  malformed("is neither true nor false");
  return false;
}

std::uint32_t Field::number() const {
  if (json_.is_number_unsigned() && json_.get<std::uint64_t>() <= std::numeric_limits<std::int32_t>::max()) {
    return json_.get<std::uint32_t>();
  }
  malformed("is not a whole number from 0 to 2147483647");
  return 0;
}

double Field::real() const {
  if (json_.is_number()) return json_.get<double>();
  malformed("is not a number");
  return 0;
}

char32_t Field::character() const {
  const std::u32string all = points(text());
  if (all.size() == 1) return all[0];
  malformed("is not one character");
  return U' ';
}

}  // namespace eecompile::tok
