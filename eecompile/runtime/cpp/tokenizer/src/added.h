// Tokens that stand beside the model's: found in the text before the model sees it, special ones among them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "field.h"
#include "model.h"
#include "normalizer.h"
#include "text.h"
#include "vocabulary.h"

namespace eecompile::tok {

struct AddedToken {
  std::string content;
  std::string matched;  // what is looked for, and what decodes: normalised where the token is
  bool single_word, left_strip, right_strip, normalized, special;
};

class AddedTokens {
 public:
  AddedTokens() = default;

  // Of the file's `added_tokens`. A token's id is the model's where that has the token, else the next free one, as
  // the library gives them out.
  AddedTokens(const Field& field, const Model& model, const Normalizer* normalizer);

  // The text (valid UTF-8) cut at added tokens and normalised between them: first those that are looked for as they
  // stand, then, in what is normalised, the others. Each time the leftmost, of those the longest.
  // Cost: linear in the text, times the longest added token.
  // tracked: whether spans of tokens are asked for.
  Pieces extract(std::string text, const Normalizer* normalizer, bool tracked = false) const;

  // What an id decodes to; nullptr where it is no added token.
  const std::string* token(std::uint32_t id) const;
  std::optional<std::uint32_t> find(const std::string& content) const;
  std::int64_t highest() const { return tokens_.empty() ? -1 : std::int64_t{tokens_.rbegin()->first}; }
  bool is_special(const std::string& token) const { return special_.count(token) > 0; }

 private:
  void add(const Field& field, const Model& model, const Normalizer* normalizer, std::uint32_t& next);
  void add_matches(const Text& text, const Vocabulary& wanted, Pieces& pieces) const;

  std::map<std::string, std::uint32_t> ids_;
  std::map<std::uint32_t, AddedToken> tokens_;
  std::set<std::string> special_;
  Vocabulary plain_, normalized_;
};

}  // namespace eecompile::tok
