#include "json_tree.h"

#include <locale.h>
#include <stdlib.h>

#include <array>
#include <optional>

#include "letters.h"
#include "number.h"

namespace eecompile::json {
namespace {

constexpr std::uint64_t kLeast = std::uint64_t{1} << 63;  // the size of the least int64

bool has_escapes(std::string_view inside) { return inside.find('\\') != inside.npos; }

bool same(std::string_view inside, std::string_view wanted) {
  if (inside.size() < wanted.size()) return false;
  if (!has_escapes(inside)) return inside == wanted;
  Letters letters(inside);
  for (const char c : wanted)
    if (letters.next() != static_cast<unsigned char>(c)) return false;
  return letters.next() < 0;
}

// The number that these digits are; nothing where they are others as well, or too many for 64 bits.
std::optional<std::uint64_t> whole(std::string_view digits) {
  std::uint64_t value = 0;
  for (const char c : digits) {
    const auto digit = static_cast<std::uint64_t>(c - '0');
    if (c < '0' || c > '9' || value > (UINT64_MAX - digit) / 10) return std::nullopt;
    value = 10 * value + digit;
  }
  return value;
}

}  // namespace

double real_of(std::string_view written) {
  static const locale_t kPlain = newlocale(LC_ALL_MASK, "C", nullptr);
  std::array<char, 65> ended{};
  written.copy(ended.data(), ended.size() - 1);
  return kPlain == nullptr ? strtod(ended.data(), nullptr) : strtod_l(ended.data(), nullptr, kPlain);
}

char Value::first() const { return tree_ == nullptr ? 'n' : tree_->first(node_); }

std::string_view Value::raw() const {
  if (tree_ == nullptr) return "null";
  if (is_string()) return tree_->inside(node_);
  const Tree::Node& node = tree_->nodes_[node_];
  return is_object() || is_array() ? std::string_view() : tree_->text_.substr(node.at, node.end - node.at);
}

bool Value::is_plain() const { return is_string() && !has_escapes(raw()); }

bool Value::is_number_unsigned() const { return is_number() && whole(raw()).has_value(); }

bool Value::is_number_integer() const {
  if (!is_number() || first() != '-') return is_number_unsigned();
  return whole(raw().substr(1)).value_or(UINT64_MAX) <= kLeast;
}

std::uint64_t Value::integer() const {
  const std::string_view written = raw();
  return first() == '-' ? 0 - whole(written.substr(1)).value_or(0) : whole(written).value_or(0);
}

double Value::real() const { return real_of(raw()); }

std::string Value::text() const {
  const std::string_view inside = raw();
  if (!has_escapes(inside)) return std::string(inside);
  std::string meant;
  meant.reserve(inside.size());
  Letters letters(inside);
  for (int byte = letters.next(); byte >= 0; byte = letters.next()) meant += static_cast<char>(byte);
  return meant;
}

bool Value::operator==(std::string_view other) const { return is_string() && same(raw(), other); }

Iterator Value::begin() const { return {tree_, is_array() ? node_ + 1 : 0}; }
Iterator Value::end() const { return {tree_, is_array() ? tree_->nodes_[node_].end : 0}; }

Items Value::items() const { return Items(*this); }

Items::Pairs Items::begin() const {
  return Pairs({object_.tree_, object_.is_object() ? object_.node_ + 1 : 0});
}
Items::Pairs Items::end() const {
  return Pairs({object_.tree_, object_.is_object() ? object_.tree_->nodes_[object_.node_].end : 0});
}

std::pair<std::string, Value> Items::Pairs::operator*() const {
  Iterator value = at_;
  return {(*at_).get<std::string>(), *++value};
}

std::size_t Value::size() const {
  std::size_t count = 0;
  for (Iterator at = begin(); at != end(); ++at) ++count;
  const Items all = items();
  for (Items::Pairs at = all.begin(); at != all.end(); ++at) ++count;
  return count;
}

Value Value::operator[](std::size_t index) const {
  for (const Value one : *this)
    if (index-- == 0) return one;
  return {};
}

Value Value::find(std::string_view key) const {
  Value found;
  if (!is_object()) return found;
  const std::uint32_t end = tree_->nodes_[node_].end;
  for (std::uint32_t at = node_ + 1; at < end; at = tree_->behind(at + 1)) {
    if (!same(tree_->inside(at), key)) continue;
    found = {tree_, at + 1};
    if (tree_->unique_) break;
  }
  return found;
}

}  // namespace eecompile::json
