// eecompile-run on a bundle of an encoder (cli/classify.py): one text, or a file of them.
#pragma once

#include "arguments.h"
#include "eecompile/bundle.h"

namespace eecompile {

// Options that a bundle which generates text has no use for.
inline constexpr std::initializer_list<const char*> kClassifying = {"--pair",  "--granularity", "--truncate",
                                                                    "--input", "--output",      "--batch"};

// Classifies what the arguments say and prints it, or writes it to the output file.
Status classify(const Bundle& bundle, const Arguments& arguments);

}  // namespace eecompile
