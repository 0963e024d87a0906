// The stages of decoder.h.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "decoder.h"
#include "metaspace.h"
#include "pattern.h"

namespace eecompile::tok {

std::unique_ptr<Stage> spaced_stage();
std::unique_ptr<Stage> byte_level_stage();
std::unique_ptr<Stage> byte_fallback_stage();
std::unique_ptr<Stage> word_piece_stage(std::string prefix, bool cleanup);
std::unique_ptr<Stage> metaspace_stage(const Metaspace& meta, bool fused);
std::unique_ptr<Stage> replace_stage(Pattern pattern, std::string content);
std::unique_ptr<Stage> strip_stage(char32_t content, std::size_t start, std::size_t stop);

// What Strip with stop = 0 does to the parts of one token.
std::unique_ptr<Stage> strip_start_stage(char32_t content, std::size_t start);

// Collects the parts of one token for `inner`.
std::unique_ptr<Stage> whole_stage(std::unique_ptr<Stage> inner);

}  // namespace eecompile::tok
