// From text to tree (RFC 8259), without recursion and without a copy.
#include <algorithm>
#include <array>
#include <cmath>

#include "letters.h"
#include "number.h"
#include "json_tree.h"

namespace eecompile::json {
namespace {

constexpr std::size_t kDeepest = 64, kLongestNumber = 64;

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }
bool is_digit(char c) { return '0' <= c && c <= '9'; }
bool is_hex(char c) { return is_digit(c) || ('a' <= (c | 32) && (c | 32) <= 'f'); }

bool before(std::string_view a, std::string_view b) {
  if (a.find('\\') == a.npos && b.find('\\') == b.npos) return a < b;
  Letters left(a), right(b);
  while (true) {
    const int one = left.next(), other = right.next();
    if (one != other || one < 0) return one < other;
  }
}

// The bytes of the character that begins at `at`, which is none of ASCII; 0 where that is no UTF-8.
std::size_t character(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0u; };
  const auto follows = [&](std::size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const unsigned first = byte(0), second = byte(1);
  if (first < 0xC2 || first > 0xF4 || !follows(1)) return 0;
  if (first < 0xE0) return 2;
  if (!follows(2) || (first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F)) return 0;
  if (first < 0xF0) return 3;
  return follows(3) && !(first == 0xF0 && second < 0x90) && !(first == 0xF4 && second > 0x8F) ? 4 : 0;
}

// As many values and keys as the text may have, and as many keys.
std::pair<std::size_t, std::size_t> counted(std::string_view text) {
  std::size_t values = 1, keys = 0;
  for (std::size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    values += c == ',' || c == ':' || c == '[' || c == '{';
    keys += c == ':';
    if (c != '"') continue;
    for (++at; at < text.size() && text[at] != '"'; ++at) at += text[at] == '\\';
  }
  return {values, keys};
}

}  // namespace

class Reader {
 public:
  Reader(Tree& tree, bool unique) : text_(tree.text_), nodes_(tree.nodes_), tree_(tree), unique_(unique) {}

  std::string run() {
    skip_space();
    bool good = item();
    while (good && depth_ > 0) good = member();
    skip_space();
    return good && at_ == text_.size() ? "" : fault_;
  }

 private:
  char now() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void skip_space() {
    while (at_ < text_.size() && is_space(text_[at_])) ++at_;
  }

  bool take(char wanted) {
    const bool found = at_ < text_.size() && text_[at_] == wanted;
    at_ += found;
    return found;
  }

  bool refuse(const char* why) {
    fault_ = why;
    return false;
  }

  bool put(std::size_t begin) {
    nodes_.push_back({static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(at_)});
    return true;
  }

  // What comes next in the innermost object or array that is open.
  bool member() {
    const bool object = tree_.first(open_[depth_ - 1]) == '{';
    skip_space();
    if (take(object ? '}' : ']')) return close();
    if (!empty_ && !take(',')) return false;
    empty_ = false;
    skip_space();
    if (object) {
      if (now() != '"' || !string()) return false;
      skip_space();
      if (!take(':')) return false;
      skip_space();
    }
    return item();
  }

  // A value, or the beginning of an object or an array.
  bool item() {
    const char c = now();
    if (c == '"') return string();
    if (c == 't') return literal("true");
    if (c == 'f') return literal("false");
    if (c == 'n') return literal("null");
    if (c != '{' && c != '[') return number();
    if (depth_ == kDeepest) return refuse("nested too deeply");
    open_[depth_++] = static_cast<std::uint32_t>(nodes_.size());
    empty_ = true;
    return put(at_++);
  }

  bool close() {
    const std::uint32_t own = open_[--depth_];
    nodes_[own].end = static_cast<std::uint32_t>(nodes_.size());
    empty_ = false;
    return !unique_ || tree_.first(own) == '[' || keys_differ(own);
  }

  bool keys_differ(std::uint32_t object) {
    const auto each_key = [&](const auto& act) {
      for (std::uint32_t key = object + 1; key < nodes_.size(); key = tree_.behind(key + 1)) act(key);
    };
    std::size_t count = 0;
    each_key([&](std::uint32_t) { ++count; });
    if (count > keys_.capacity()) std::vector<std::uint32_t>().swap(keys_);  // never two of them at once
    keys_.clear();
    keys_.reserve(count);
    each_key([&](std::uint32_t key) { keys_.push_back(key); });
    const auto less = [&](std::uint32_t a, std::uint32_t b) { return before(tree_.inside(a), tree_.inside(b)); };
    std::sort(keys_.begin(), keys_.end(), less);
    for (std::size_t i = 1; i < count; ++i)
      if (!less(keys_[i - 1], keys_[i])) return refuse("a key stands twice in one object");
    return true;
  }

  bool literal(std::string_view word) {
    const std::size_t begin = at_;
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return put(begin);
  }

  bool digits() {
    const std::size_t begin = at_;
    while (is_digit(now())) ++at_;
    return at_ > begin;
  }

  bool number() {
    const std::size_t begin = at_;
    take('-');
    if (!take('0') && !digits()) return false;
    if (take('.') && !digits()) return false;
    const bool scaled = take('e') || take('E');
    if (scaled && !take('+')) take('-');
    if (scaled && !digits()) return false;
    if (at_ - begin > kLongestNumber) return refuse("a number of more than 64 characters");
    if (scaled && !std::isfinite(real_of(text_.substr(begin, at_ - begin)))) return refuse("a number that is not finite");
    return put(begin);
  }

  bool string() {
    const std::size_t begin = at_++;
    while (now() != '"') {
      const char c = now();
      if (c == '\\') {
        if (!escape()) return false;
      } else if (static_cast<unsigned char>(c) < 0x20) {  // or the text's end
        return false;
      } else {
        const std::size_t size = (c & 0x80) == 0 ? 1 : character(text_, at_);
        if (size == 0) return false;
        at_ += size;
      }
    }
    ++at_;
    return put(begin);
  }

  bool escape() {
    ++at_;
    if (now() != 'u') {
      if (std::string_view("\"\\/bfnrt").find(now()) == std::string_view::npos) return false;
      ++at_;
      return true;
    }
    const int half = surrogate();
    if (half == 0) return true;
    return half == 1 && take('\\') && now() == 'u' && surrogate() == 2;
  }

  // What "uXXXX" is: 1 and 2 for the halves of a pair, 0 for a whole character, -1 for none.
  int surrogate() {
    const std::string_view hex = text_.substr(at_ + 1, 4);
    if (hex.size() < 4 || !std::all_of(hex.begin(), hex.end(), is_hex)) return -1;
    at_ += 5;
    const bool high = (hex[0] | 32) == 'd' && !('0' <= hex[1] && hex[1] <= '7');
    if (!high) return 0;
    return hex[1] <= '9' || (hex[1] | 32) <= 'b' ? 1 : 2;
  }

  const std::string_view text_;
  std::vector<Tree::Node>& nodes_;
  Tree& tree_;
  const bool unique_;
  std::size_t at_ = 0, depth_ = 0;
  std::array<std::uint32_t, kDeepest> open_{};
  bool empty_ = false;  // whether the innermost has just been opened
  std::vector<std::uint32_t> keys_;
  std::string fault_ = "not JSON";
};

std::string Tree::read(std::string_view text, const Limits& limits) {
  if (text.size() >= UINT32_MAX) return "more than 4 GB";
  const auto [values, keys] = counted(text);
  if (values * sizeof(Node) + (limits.unique ? keys * sizeof(std::uint32_t) : 0) > limits.bytes)
    return "more members than memory is given for";
  text_ = text;
  unique_ = limits.unique;
  nodes_.reserve(values);
  return Reader(*this, limits.unique).run();
}

}  // namespace eecompile::json
