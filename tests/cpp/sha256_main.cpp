// Hashes its input, whole and in pieces of 1, 2, 3, ... bytes: by the processor's instructions if it has them, and
// without. The first line says which.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <iterator>

#include "sha256.h"

int main() {
  const std::string data(std::istreambuf_iterator<char>(std::cin), {});
  std::puts(eecompile::Sha256().is_fast() ? "instructions" : "plain");
  for (const bool plain : {false, true}) {
    eecompile::Sha256 whole(plain), pieces(plain);
    whole.update(data.data(), data.size());
    for (std::size_t begin = 0, size = 1; begin < data.size(); begin += size++)
      pieces.update(data.data() + begin, std::min(size, data.size() - begin));
    std::puts(whole.hex().c_str());
    std::puts(pieces.hex().c_str());
  }
  return 0;
}
