// The pre-tokenisers of tokenizer.json: ByteLevel, Split, Digits, Whitespace, WhitespaceSplit, BertPreTokenizer,
// Metaspace, Punctuation, Sequence.
#pragma once

#include <memory>

#include "field.h"
#include "text.h"

namespace eecompile::tok {

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void apply(Pieces& pieces) const = 0;
};

// Never null; a fault of the field where it is none of these.
std::unique_ptr<const PreTokenizer> pre_tokenizer_from(const Field& field);

}  // namespace eecompile::tok
