// The printable characters that byte-level tokenizers write bytes as (GPT-2's table).
#pragma once

#include <string>
#include <string_view>

namespace eecompile::tok {

// Every byte of `bytes` as its character, UTF-8.
std::string bytes_to_chars(std::string_view bytes);

// The bytes that `chars` stands for; `chars` itself where one of its characters stands for none.
std::string chars_to_bytes(std::string_view chars);

}  // namespace eecompile::tok
