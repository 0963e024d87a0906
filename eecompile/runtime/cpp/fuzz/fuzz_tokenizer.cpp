// A tokenizer.json of any bytes, and what it makes of some text.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "eecompile/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const eecompile::Result<eecompile::Tokenizer> tokenizer = eecompile::Tokenizer::parse(text, "tokenizer.json");
  if (!tokenizer.ok()) return 0;
  for (const bool special : {true, false})
    static_cast<void>(tokenizer->decode(tokenizer->encode("Aa  caf\xC3\xA9\n42 \xE6\xBC\xA2\xFF", special), special));
  static_cast<void>(tokenizer->decode({0, 1, 2, tokenizer->size(), -1}));
  return 0;
}
