// How many tasks `launch` accepts of those that it has to refuse.
#include "refusals.h"

int main() {
  int accepted = 0;
  for (const eecompile::Logits& bad : eecompile::refusals()) {
    accepted += eecompile::launch(bad, nullptr, {}, nullptr, nullptr) != cudaErrorInvalidValue;
  }
  return accepted;
}
