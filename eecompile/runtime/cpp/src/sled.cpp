#include "sled.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "sampling.h"

namespace eecompile {
namespace {

using Double = std::vector<double>;
using Places = std::vector<std::size_t>;

constexpr std::size_t kTop = 10;  // tokens that may still be chosen
constexpr int kSteps = 10;
constexpr double kFloor = -100;  // the logit of every other token

Double softmax(const Double& z) {
  const double most = *std::max_element(z.begin(), z.end());
  Double weights(z.size());
  for (std::size_t i = 0; i < z.size(); ++i) weights[i] = std::exp(z[i] - most);
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (double& weight : weights) weight /= sum;
  return weights;
}

// The places of the best logits, best first, of equal ones the first.
Places best_of(const Double& z) {
  Places places(z.size());
  std::iota(places.begin(), places.end(), std::size_t{0});
  const auto middle = places.begin() + static_cast<std::ptrdiff_t>(std::min(kTop, z.size()));
  std::partial_sort(places.begin(), middle, places.end(),
                    [&](std::size_t a, std::size_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); });
  places.erase(middle, places.end());
  return places;
}

// Adds max(0, cos(softmax(z_n) - e_i, z_n - z_N))^2 for each token i of `top`: how well the way from the exit's logits
// to the final ones follows the gradient that would make it say that token. The tokens of `top` are summed apart from
// the others: what is left of softmax(z_n) - e_i where one has nearly all of the probability would be lost in rounding.
void add_votes(const Double& exit, const Double& final, const Places& top, Double& votes) {
  const Double probability = softmax(exit);
  Double rest = probability, way(exit.size());
  for (const std::size_t i : top) rest[i] = 0;
  double product = 0, size = 0, length = 0;
  for (std::size_t i = 0; i < exit.size(); ++i) {
    way[i] = exit[i] - final[i];
    product += rest[i] * way[i];
    size += rest[i] * rest[i];
    length += way[i] * way[i];
  }
  for (std::size_t own = 0; own < top.size(); ++own) {
    double along = product, whole = size;
    for (std::size_t j = 0; j < top.size(); ++j) {
      const double gradient = probability[top[j]] - (j == own ? 1 : 0);
      along += gradient * way[top[j]];
      whole += gradient * gradient;
    }
    const double scale = std::sqrt(whole) * std::sqrt(length), cosine = scale > 0 ? along / scale : 0;
    votes[own] += std::max(0.0, cosine) * std::max(0.0, cosine);
  }
}

}  // namespace

Double evolve(const float* exits, std::size_t n, const float* final, std::size_t vocab, double rate) {
  Double z(final, final + vocab);
  const Places top = best_of(z);
  Double votes(top.size());
  for (std::size_t exit = 0; exit < n; ++exit)
    add_votes(Double(exits + exit * vocab, exits + (exit + 1) * vocab), z, top, votes);
  const double total = std::accumulate(votes.begin(), votes.end(), 0.0);
  if (!(total > 0)) return z;
  Double target(vocab);
  for (std::size_t i = 0; i < top.size(); ++i) target[top[i]] = votes[i] / total;
  for (int step = 0; step < kSteps; ++step) {
    const Double probability = softmax(z);
    for (std::size_t i = 0; i < vocab; ++i)
      z[i] -= rate * (1 - static_cast<double>(step) / kSteps) * (probability[i] - target[i]);
  }
  Double evolved(vocab, kFloor);
  for (const std::size_t i : top) evolved[i] = z[i];
  return evolved;
}

Status SledDecoder::start(Continuation& one) {
  one.stairs.rewind(one.stairs.length() - 1);
  return step(one);
}

Status SledDecoder::step(Continuation& one) {
  Staircase& stairs = one.stairs;
  const std::int64_t width = manifest_.model.hidden;
  std::vector<float> rows;
  one.certain.clear();
  if (Status status = stairs.append(&one.last, 1); !status.ok()) return status;
  for (std::size_t k = 0; k < manifest_.schedule.size(); ++k) {
    if (Status status = stairs.run_step(k); !status.ok()) return status;
    const std::optional<std::size_t>& exit = manifest_.schedule[k].exit;
    if (!exit) continue;
    Walk walk;
    ExitAsker& asker = *askers_[*exit];
    if (Status status = asker.ask(stairs.last_row(), {&walk}, {stairs.slot()}); !status.ok()) return status;
    rows.insert(rows.end(), asker.hidden(), asker.hidden() + width);
  }
  rows.insert(rows.end(), stairs.last_row(), stairs.last_row() + width);
  const std::size_t exits = askers_.size(), vocab = static_cast<std::size_t>(manifest_.model.vocab);
  const Result<Decisions> decided = head_.decide(rows.data(), static_cast<std::int64_t>(exits) + 1, nullptr, true);
  if (!decided.ok()) return decided.status();
  const float* logits = decided->logits;
  const std::int64_t position = stairs.length();
  if (!std::all_of(logits, logits + (exits + 1) * vocab, [](float x) { return std::isfinite(x); })) {
    one.fault = not_finite(position);
    return {};
  }
  const Sampling& how = one.state.sampling;
  const Double evolved = evolve(logits, exits, logits + exits * vocab, vocab, how.sled_rate);
  if (how.greedy()) {
    one.last = std::max_element(evolved.begin(), evolved.end()) - evolved.begin();
  } else {
    const std::vector<float> narrow(evolved.begin(), evolved.end());
    one.last = sample(narrow.data(), manifest_.model.vocab, position, how, nullptr);
  }
  one.certain = {{one.last, manifest_.model.layers}};
  return {};
}

}  // namespace eecompile
