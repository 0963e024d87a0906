// The manifest's reader, on any bytes; a digest in them is put right first, or nothing would be read beyond it.
#include <cstddef>
#include <cstdint>

#include "documents.h"
#include "manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  static_cast<void>(eecompile::read_manifest(text, "manifest.json"));
  static_cast<void>(eecompile::read_manifest(eecompile::stress::sealed_text(text), "manifest.json"));
  return 0;
}
