// A tokenizer.json of any bytes, and what it makes of some text.
#include <cstddef>
#include <cstdint>
#include <new>
#include <string_view>

#include "eecompile/tokenizer.h"

namespace {

void tokenize(std::string_view file) {
  const eecompile::Result<eecompile::Tokenizer> tokenizer = eecompile::Tokenizer::parse(file, "tokenizer.json");
  if (!tokenizer.ok()) return;
  for (const bool special : {true, false})
    static_cast<void>(tokenizer->decode(tokenizer->encode("Aa  caf\xC3\xA9\n42 \xE6\xBC\xA2\xFF", special), special));
  static_cast<void>(tokenizer->decode({0, 1, 2, tokenizer->size(), -1}));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    tokenize({reinterpret_cast<const char*>(data), size});
  } catch (const std::bad_alloc&) {  // of a file that makes much of little
  }
  return 0;
}
