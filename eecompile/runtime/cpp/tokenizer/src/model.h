// The models of tokenizer.json: BPE (Sennrich et al., arXiv 1508.07909), WordPiece (Schuster and Nakajima 2012) and
// Unigram (Kudo, arXiv 1804.10959).
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "field.h"
#include "vocabulary.h"

namespace eecompile::tok {

using Ids = std::vector<std::int64_t>;

// An id, and the bytes [begin, end) of the piece that it stands for.
struct Token {
  std::int64_t id;
  std::size_t begin, end;
};
using Tokens = std::vector<Token>;

class Model {
 public:
  virtual ~Model() = default;

  // Appends the tokens of one piece of text (valid UTF-8).
  virtual void encode(std::string_view piece, Tokens& tokens) const = 0;

  const Vocabulary& vocabulary() const { return vocabulary_; }

 protected:
  explicit Model(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {}

  Vocabulary vocabulary_;
};

// Null where a fault was found.
std::unique_ptr<const Model> model_from(const Field& field);

std::unique_ptr<const Model> bpe_from(const Field& field);
std::unique_ptr<const Model> word_piece_from(const Field& field);
std::unique_ptr<const Model> unigram_from(const Field& field);

// {"token": id, ..}
Vocabulary vocabulary_from(const Field& field);

// The ids of <0x00> to <0xFF>, kNone where there is none.
std::vector<std::uint32_t> byte_tokens(const Vocabulary& vocabulary);

}  // namespace eecompile::tok
