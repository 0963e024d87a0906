#include "model.h"

#include <string>

namespace eecompile::tok {

std::unique_ptr<const Model> model_from(const Field& field) {
  const std::string type = field.at("type").text();
  if (type == "BPE") return bpe_from(field);
  if (type == "WordPiece") return word_piece_from(field);
  if (type == "Unigram") return unigram_from(field);
  field.unsupported("the model " + type + " is not supported");
  return nullptr;
}

Vocabulary vocabulary_from(const Field& field) {
  std::vector<Vocabulary::Entry> entries;
  if (!field.json().is_object()) field.malformed("is no table of tokens and ids");
  for (const auto& [token, id] : field.json().items()) {
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() > 0x7FFFFFFF) {
      field.malformed("has an id that is no whole number from 0 to 2147483647");
      break;
    }
    entries.emplace_back(token, id.get<std::uint32_t>());
  }
  return Vocabulary(std::move(entries));
}

std::vector<std::uint32_t> byte_tokens(const Vocabulary& vocabulary) {
  static constexpr char kDigits[] = "0123456789ABCDEF";
  std::vector<std::uint32_t> ids;
  for (std::size_t byte = 0; byte < 256; ++byte) {
    ids.push_back(vocabulary.find(std::string("<0x") + kDigits[byte >> 4] + kDigits[byte & 15] + ">"));
  }
  return ids;
}

}  // namespace eecompile::tok
