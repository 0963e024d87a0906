// Grapheme clusters (UAX 29, extended), which a compiled character map works on.
#pragma once

#include <cstddef>
#include <string_view>

namespace eecompile::tok {

// Where the cluster that begins at byte `at` < text.size() ends. Regional indicators are told apart one by one: a
// compiled map treats longer clusters character by character anyway.
std::size_t cluster_end(std::string_view text, std::size_t at);

}  // namespace eecompile::tok
