// A file of prompts, run side by side: a line of JSON for each (cli/many.py).
//
// Cost: all prompts and what is generated from them.
#pragma once

#include <string>

#include "arguments.h"
#include "eecompile/text.h"

namespace eecompile {

// What --json says of a request, in one line; text: null where the bundle has no tokenizer.
std::string result_line(const Ids& prompt, const Generation& found, const std::string* text, const std::string& mode,
                        const std::string& error = "");

// Continues every prompt of a's input and writes a line each to its output, in order, once all is done. A prompt that
// cannot be served and a sequence that fails have "error" in their line; `failed` counts them.
Status run_file(const Arguments& a, Session& session, const Result<Text>& text, std::size_t& failed);

}  // namespace eecompile
