#include <string>
#include <utility>

#include "model.h"
#include "utf8.h"

namespace eecompile::tok {

namespace {

class WordPiece : public Model {
 public:
  WordPiece(Vocabulary vocabulary, std::uint32_t unknown, const std::string& prefix, std::size_t longest)
      : Model(std::move(vocabulary)), unknown_(unknown), continued_(vocabulary_.root()), longest_(longest) {
    for (const char byte : prefix) {
      if (continued_ != kNone) continued_ = vocabulary_.step(continued_, byte);
    }
  }

  // The longest token each time; the whole word is unknown where one place has none.
  // Cost: the word's bytes times the longest token's.
  void encode(std::string_view word, Tokens& tokens) const override {
    const std::size_t before = tokens.size();
    bool known = points(word).size() <= longest_;
    for (std::size_t at = 0; known && at < word.size();) {
      std::uint32_t id = kNone;
      const std::size_t end = longest_match(word, at, id);
      known = id != kNone;
      tokens.push_back({id, at, end});
      at = end;
    }
    if (known) return;
    tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(before), tokens.end());
    tokens.push_back({unknown_, 0, word.size()});
  }

 private:
  std::size_t longest_match(std::string_view word, std::size_t at, std::uint32_t& id) const {
    std::uint32_t node = at == 0 ? vocabulary_.root() : continued_;
    std::size_t end = at;
    for (; node != kNone && at < word.size(); ++at) {
      node = vocabulary_.step(node, word[at]);
      if (node == kNone || vocabulary_.id_at(node) == kNone) continue;
      id = vocabulary_.id_at(node);
      end = at + 1;
    }
    return end;
  }

  std::uint32_t unknown_;
  std::uint32_t continued_;  // where tokens that continue a word begin in the trie
  std::size_t longest_;
};

}  // namespace

std::unique_ptr<const Model> word_piece_from(const Field& field) {
  Vocabulary vocabulary = vocabulary_from(field.at("vocab"));
  const std::uint32_t unknown = vocabulary.find(field.text("unk_token", "[UNK]"));
  if (unknown == kNone) field.malformed("its unk_token is not in the vocabulary");
  const char* const most = "max_input_chars_per_word";
  const std::size_t longest = field.has(most) ? field.at(most).number() : 100;
  return std::make_unique<WordPiece>(std::move(vocabulary), unknown, field.text("continuing_subword_prefix", "##"),
                                     longest);
}

}  // namespace eecompile::tok
