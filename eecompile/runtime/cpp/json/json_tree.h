// JSON that nobody vouches for, as a tree of 8 bytes a value above its text, which is not copied.
//
// Thread safety: a tree that is read does not change; any number of threads may ask it. Cost: reading is linear in the
// text, and of n log n in the members of an object where keys have to be unique; `find`, `size` and `[]` are linear in
// the members or elements. Texts and numbers are decoded when they are asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace eecompile::json {

class Tree;
class Iterator;
class Items;

// A value of a tree, which outlives it; or none at all, which reads as null.
class Value {
 public:
  Value() = default;

  bool is_null() const { return first() == 'n'; }
  bool is_object() const { return first() == '{'; }
  bool is_array() const { return first() == '['; }
  bool is_string() const { return first() == '"'; }
  bool is_boolean() const { return first() == 't' || first() == 'f'; }
  bool is_number() const { return first() == '-' || (first() >= '0' && first() <= '9'); }
  bool is_number_integer() const;   // written without fraction and exponent, and an int64 or a uint64
  bool is_number_unsigned() const;  // one of these without a sign

  // Asked for as what it is.
  template <typename T>
  T get() const {
    if constexpr (std::is_same_v<T, std::string>) return text();
    else if constexpr (std::is_same_v<T, bool>) return first() == 't';
    else if constexpr (std::is_floating_point_v<T>) return static_cast<T>(real());
    else return static_cast<T>(integer());
  }
  bool operator==(std::string_view other) const;  // whether it is this text
  bool operator!=(std::string_view other) const { return !(*this == other); }

  std::string_view raw() const;  // as it is written: a number, a word, or the inside of a text with its escapes
  bool is_plain() const;         // a text without escapes

  std::size_t size() const;  // of an object or an array; else 0
  bool empty() const { return size() == 0; }
  Value operator[](std::size_t index) const;  // of an array; none beyond its end
  Value find(std::string_view key) const;     // of an object, the last of that name; none where there is none
  bool contains(std::string_view key) const { return find(key).tree_ != nullptr; }
  Iterator begin() const;  // an array's elements
  Iterator end() const;
  Items items() const;  // an object's keys and values

 private:
  friend class Tree;
  friend class Iterator;
  friend class Items;
  Value(const Tree* tree, std::uint32_t node) : tree_(tree), node_(node) {}

  char first() const;
  std::string text() const;
  std::uint64_t integer() const;  // its bits
  double real() const;

  const Tree* tree_ = nullptr;
  std::uint32_t node_ = 0;
};

class Tree {
 public:
  struct Limits {
    std::size_t bytes;  // that reading may take besides the text
    bool unique;        // whether a key may stand once in an object
  };

  // Reads `text`, which has to stay where it is. Returns what is wrong with it; empty where nothing: strict JSON in
  // UTF-8, finite numbers of at most 64 characters, nested at most 64 deep.
  std::string read(std::string_view text, const Limits& limits);

  Value root() const { return {this, 0}; }
  Tree() = default;
  Tree(Tree&&) noexcept = default;  // values of it are none of the new one
  Tree& operator=(Tree&&) = delete;

 private:
  friend class Value;
  friend class Iterator;
  friend class Items;
  friend class Reader;

  // Where a value begins in the text, and where it ends there; of an object or an array: the node behind its last.
  struct Node {
    std::uint32_t at, end;
  };

  char first(std::uint32_t node) const { return text_[nodes_[node].at]; }
  std::uint32_t behind(std::uint32_t node) const {
    return first(node) == '{' || first(node) == '[' ? nodes_[node].end : node + 1;
  }
  std::string_view inside(std::uint32_t node) const {  // a text without its quotes
    return text_.substr(nodes_[node].at + 1, nodes_[node].end - nodes_[node].at - 2);
  }

  std::string_view text_;
  bool unique_ = true;
  std::vector<Node> nodes_;  // in the text's order: an object's or array's own node, then what is in it
};

class Iterator {
 public:
  Iterator(const Tree* tree, std::uint32_t node) : tree_(tree), node_(node) {}
  Value operator*() const { return {tree_, node_}; }
  Iterator& operator++() {
    node_ = tree_->behind(node_);
    return *this;
  }
  bool operator!=(const Iterator& other) const { return node_ != other.node_; }

 private:
  const Tree* tree_;
  std::uint32_t node_;
};

class Items {
 public:
  class Pairs {
   public:
    explicit Pairs(Iterator at) : at_(at) {}
    std::pair<std::string, Value> operator*() const;
    Pairs& operator++() {
      ++++at_;
      return *this;
    }
    bool operator!=(const Pairs& other) const { return at_ != other.at_; }

   private:
    Iterator at_;
  };

  explicit Items(Value object) : object_(object) {}
  Pairs begin() const;
  Pairs end() const;

 private:
  Value object_;
};

}  // namespace eecompile::json
