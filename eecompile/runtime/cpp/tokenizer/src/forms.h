// Normalisation forms (UAX 15).
#pragma once

#include "text.h"

namespace eecompile::tok {

void normalize_form(Text& text, bool compatible, bool compose);

}  // namespace eecompile::tok
