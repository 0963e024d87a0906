// Reads rows from standard input, decides each in several orders of `add` and `merge`, writes what every order says.
//
//   host_test V < rows > answers      row: float [V] logits, float [3] bounds; answer: one struct Answer an order
//
// tests/plugins/test_exit_decision.py compares them with float64 and with the ONNX function.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "reduction.h"

using eecompile::Reduction;

namespace {

struct Answer {
  std::int32_t token;
  float max_prob, margin, entropy;
  std::int32_t flag;
};

Reduction span(const float* row, int begin, int end) {
  Reduction state = Reduction::empty();
  for (int i = begin; i < end; ++i) state.add(row[i], i);
  return state;
}

Reduction forwards(const float* row, int size) { return span(row, 0, size); }

Reduction backwards(const float* row, int size) {
  Reduction state = Reduction::empty();
  for (int i = size; i-- > 0;) state.merge(span(row, i, i + 1));
  return state;
}

Reduction halves(const float* row, int size) {
  Reduction state = span(row, size / 2, size);
  state.merge(span(row, 0, size / 2));
  return state;
}

// Spans of seven into one, the last one first, with empty reductions between them.
Reduction from_the_right(const float* row, int size) {
  Reduction state = Reduction::empty();
  for (int begin = (size - 1) / 7 * 7; begin >= 0; begin -= 7) {
    state.merge(Reduction::empty());
    Reduction next = span(row, begin, begin + 7 < size ? begin + 7 : size);
    next.merge(state);
    state = next;
  }
  return state;
}

// As on a device: lanes take neighbours in fours by turns, then merge by halves.
Reduction as_lanes(const float* row, int size) {
  constexpr int kLanes = 32, kNeighbours = 4;
  std::vector<Reduction> lanes(kLanes, Reduction::empty());
  for (int begin = 0, lane = 0; begin < size; begin += kNeighbours, lane = (lane + 1) % kLanes) {
    if (begin + kNeighbours <= size) {
      const float four[kNeighbours] = {row[begin], row[begin + 1], row[begin + 2], row[begin + 3]};
      lanes[lane].add(four, begin);
    } else {
      for (int i = begin; i < size; ++i) lanes[lane].add(row[i], i);
    }
  }
  for (int step = kLanes / 2; step > 0; step /= 2) {
    for (int lane = 0; lane < step; ++lane) lanes[lane].merge(lanes[lane + step]);
  }
  return lanes[0];
}

}  // namespace

int main(int count, char** arguments) {
  const int size = count == 2 ? std::atoi(arguments[1]) : 0;
  if (size < 1) return 2;
  std::vector<float> row(static_cast<std::size_t>(size) + 3);
  while (std::fread(row.data(), sizeof(float), row.size(), stdin) == row.size()) {
    for (auto order : {forwards, backwards, halves, from_the_right, as_lanes}) {
      const eecompile::Decision said = order(row.data(), size).finish();
      const Answer answer{said.token, said.max_prob, said.margin, said.entropy, said.opens(row.data() + size)};
      if (std::fwrite(&answer, sizeof answer, 1, stdout) != 1) return 1;
    }
  }
  return std::ferror(stdin) ? 1 : 0;
}
