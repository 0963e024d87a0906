#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace eecompile {
namespace {

using Places = std::vector<std::size_t>;

std::uint64_t mix(std::uint64_t x) {  // splitmix64 (Steele, Lea, Flood 2014)
  x += 0x9E3779B97F4A7C15;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
  x = (x ^ x >> 27) * 0x94D049BB133111EB;
  return x ^ x >> 31;
}

double gumbel(std::uint64_t key, std::uint64_t id) {
  const std::uint64_t bits = mix(mix(id + key));
  const double uniform = (static_cast<double>(bits >> 11) + 0.5) / static_cast<double>(std::uint64_t{1} << 53);
  return -std::log(-std::log(uniform));
}

// What top-k and then top-p leave of scores that are at most 0, best first; of equal scores the lower places.
Places candidates(const std::vector<double>& scores, const Sampling& how) {
  Places places(scores.size());
  std::iota(places.begin(), places.end(), std::size_t{0});
  if (how.top_k == 0 && how.top_p == 1) return places;
  const auto better = [&](std::size_t a, std::size_t b) {
    return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
  };
  const std::size_t most = how.top_k > 0 ? std::min(scores.size(), static_cast<std::size_t>(how.top_k)) : scores.size();
  std::partial_sort(places.begin(), places.begin() + static_cast<std::ptrdiff_t>(most), places.end(), better);
  places.resize(most);
  if (how.top_p >= 1) return places;
  std::vector<double> shares;
  for (const std::size_t place : places) shares.push_back(std::exp(scores[place] - scores[places[0]]));
  const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
  double before = 0;
  std::size_t kept = 0;
  while (kept < shares.size() && before < how.top_p) before += shares[kept++] / sum;
  places.resize(kept);
  return places;
}

}  // namespace

std::int64_t sample(const float* logits, std::int64_t width, std::int64_t position, const Sampling& how,
                    const Ids* ids) {
  const auto count = static_cast<std::size_t>(width);
  const double best = *std::max_element(logits, logits + count);
  std::vector<double> scores(count);
  for (std::size_t i = 0; i < count; ++i) scores[i] = (static_cast<double>(logits[i]) - best) / how.temperature;
  const std::uint64_t key = mix(mix(how.seed) + static_cast<std::uint64_t>(position));
  std::int64_t chosen = 0;
  double highest = 0;
  bool found = false;
  for (const std::size_t place : candidates(scores, how)) {
    const std::int64_t id = ids == nullptr ? static_cast<std::int64_t>(place) : (*ids)[place];
    const double score = scores[place] + gumbel(key, static_cast<std::uint64_t>(id));
    if (found && !(score > highest)) continue;
    chosen = id;
    highest = score;
    found = true;
  }
  return chosen;
}

}  // namespace eecompile
