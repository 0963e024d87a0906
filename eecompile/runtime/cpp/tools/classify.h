// eecompile-run on a bundle of an encoder (cli/classify.py): one text, or a file of them.
#pragma once

#include "arguments.h"
#include "eecompile/bundle.h"

namespace eecompile {

// Classifies what the arguments say and prints it, or writes it to the output file.
Status classify(const Bundle& bundle, const Arguments& arguments);

}  // namespace eecompile
