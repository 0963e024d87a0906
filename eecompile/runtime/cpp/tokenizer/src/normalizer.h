// The normalisers of tokenizer.json: NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, Strip, Nmt, Prepend, Replace,
// BertNormalizer, ByteLevel, Precompiled, Sequence.
#pragma once

#include <memory>

#include "field.h"
#include "text.h"

namespace eecompile::tok {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual void apply(Text& text) const = 0;
};

// Never null; a fault of the field where it is none of these.
std::unique_ptr<const Normalizer> normalizer_from(const Field& field);

// The one with a compiled character map (precompiled.cpp).
std::unique_ptr<const Normalizer> precompiled_from(const Field& field);

}  // namespace eecompile::tok
