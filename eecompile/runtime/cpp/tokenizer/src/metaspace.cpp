#include "metaspace.h"

namespace eecompile::tok {

Metaspace metaspace_from(const Field& field) {
  Metaspace meta{field.at("replacement").character(), Metaspace::Prepend::kAlways, field.flag("split", true)};
  const std::string scheme = field.text("prepend_scheme", "always");
  if (scheme == "first") {
    meta.prepend = Metaspace::Prepend::kFirst;
  } else if (scheme == "never") {
    meta.prepend = Metaspace::Prepend::kNever;
  } else if (scheme != "always") {
    field.unsupported("the prepend scheme " + scheme + " is not supported");
  }
  if (!field.flag("add_prefix_space", true)) {
    const bool contradicts = field.has("prepend_scheme") && scheme != "never";
    if (contradicts) field.malformed("add_prefix_space contradicts prepend_scheme");
    meta.prepend = Metaspace::Prepend::kNever;
  }
  return meta;
}

void mark_spaces(Text& text, const Metaspace& meta) {
  Rewriter out(text);
  for_each_point(text.bytes, [&](char32_t point, std::size_t at) { out.put(point == U' ' ? meta.mark : point, at); });
  text = out.done();
  const bool wanted = meta.prepend == Metaspace::Prepend::kAlways ||
                      (meta.prepend == Metaspace::Prepend::kFirst && text.at_start);
  if (!wanted || decode(text.bytes, 0).point == meta.mark) return;
  std::string mark;
  append(mark, meta.mark);
  text.prepend(mark);
}

}  // namespace eecompile::tok
