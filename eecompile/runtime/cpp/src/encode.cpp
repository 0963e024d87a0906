#include "encode.h"

#include <algorithm>
#include <cstring>

#include "caches.h"
#include "eecompile/contract.h"

namespace eecompile {
namespace {


std::int64_t whole(std::size_t number) { return static_cast<std::int64_t>(number); }

Status run_once(const Engine& engine, const Buffers& buffers) {
  const Result<std::unique_ptr<Pass>> pass = engine.bind(buffers);
  return pass.ok() ? (*pass)->run() : pass.status();
}

void add(Buffers& buffers, std::string_view name, const Tensor& tensor) {
  buffers[std::string(name)] = tensor.buffer();
}

// Where the texts of a pass stand in it: each text that has a row there has a number.
struct RowPlaces {
  std::vector<std::int64_t> number;  // by text, -1 where it has no row
  std::size_t count = 0, width = kLeastRows, length = 0;
};

RowPlaces places_of(const Rows& text, const Rows& place, const Rows& rows, const Rows& frozen, std::size_t texts) {
  RowPlaces found{std::vector<std::int64_t>(texts, -1)};
  std::size_t longest = 0, here = 0;
  for (const std::size_t row : rows) {
    if (found.number[text[row]] < 0) found.number[text[row]] = whole(found.count++), here = 0;
    found.width = std::max(found.width, ++here);
    longest = std::max(longest, place[row]);
  }
  for (const std::size_t row : frozen) longest = std::max(longest, place[row]);
  constexpr auto kBucket = static_cast<std::size_t>(contract::kCacheBucket);
  found.length = (longest + kBucket) / kBucket * kBucket;
  return found;
}

}  // namespace

EncoderBatch::EncoderBatch(const Manifest& manifest, const LoadedGraphs& graphs,
                           const std::vector<const EncodedText*>& texts)
    : manifest_(manifest), graphs_(graphs), texts_(texts) {
  for (std::size_t i = 0; i < texts.size(); ++i) {
    first_.push_back(text_.size());
    for (std::size_t place = 0; place < texts[i]->ids.size(); ++place) {
      text_.push_back(i);
      place_.push_back(place);
      special_.push_back(!texts[i]->special.empty() && texts[i]->special[place]);
    }
  }
}

Status EncoderBatch::embed() {
  const Engine& engine = *graphs_.embed;
  Memory& memory = *engine.memory();
  const std::int64_t rows = whole(size());
  const Tensor ids(memory, "int64", {rows}), positions(memory, "int64", {rows}), types(memory, "int64", {rows}),
      out(memory, "float32", {rows, manifest_.model.hidden});
  std::size_t row = 0;
  for (const EncodedText* text : texts_) {
    const Ids places = positions_of(text->ids, manifest_.encoder->padding);
    std::copy(text->ids.begin(), text->ids.end(), ids.data<std::int64_t>() + row);
    std::copy(places.begin(), places.end(), positions.data<std::int64_t>() + row);
    for (std::size_t i = 0; i < text->types.size(); ++i)
      types.data<std::int64_t>()[row + i] = std::min(text->types[i], manifest_.encoder->types - 1);
    row += text->ids.size();
  }
  Buffers buffers;
  add(buffers, contract::kTokenIds, ids), add(buffers, contract::kPositions, positions);
  if (manifest_.encoder->types > 0) add(buffers, contract::kTokenTypes, types);
  add(buffers, contract::kHiddenOut, out);
  if (Status status = run_once(engine, buffers); !status.ok()) return status;
  hidden_.assign(out.data<float>(), out.data<float>() + rows * manifest_.model.hidden);
  return {};
}

Status EncoderBatch::run(std::size_t segment, const std::vector<bool>& going) {
  const Engine& engine = *graphs_.segments[segment];
  std::vector<bool> alive(texts());
  for (std::size_t row = 0; row < size(); ++row)
    if (going[row]) alive[text_[row]] = true;
  Rows rows, frozen;
  for (std::size_t row = 0; row < size(); ++row) {
    if (going[row]) rows.push_back(row);
    if (!going[row] && alive[text_[row]]) frozen.push_back(row);
  }
  std::vector<float> out;
  if (Status status = pass(engine, rows, frozen, out); !status.ok()) return status;
  const auto width = static_cast<std::size_t>(manifest_.model.hidden);
  for (std::size_t i = 0; i < rows.size(); ++i)
    std::copy_n(&out[i * width], width, &hidden_[rows[i] * width]);
  ++passes_;
  layer_rows_ += whole(rows.size()) * engine.info().layers;
  frozen_rows_ += whole(frozen.size()) * engine.info().layers;
  return {};
}

// The outputs [n, D] of a pass over `rows`, of `frozen` ones the keys only.
Status EncoderBatch::pass(const Engine& engine, const Rows& rows, const Rows& frozen, std::vector<float>& out) const {
  const RowPlaces at = places_of(text_, place_, rows, frozen, texts());
  const std::size_t active = std::max(rows.size(), kLeastRows);
  const std::int64_t width = manifest_.model.hidden, count = whole(at.count);
  Memory& memory = *engine.memory();
  const Tensor hidden(memory, "float32", {whole(active), width}),
      kept(memory, "float32", {whole(frozen.size()), width}),
      queries(memory, "int64", {count, whole(at.width)}), places(memory, "int64", {whole(active)}),
      keys(memory, "int64", {count, whole(at.length)}), mask(memory, "bool", {count, whole(at.length)}),
      made(memory, "float32", {whole(active), width});
  const auto see = [&](std::size_t row, std::size_t key) {
    const std::size_t place = static_cast<std::size_t>(at.number[text_[row]]) * at.length + place_[row];
    keys.data<std::int64_t>()[place] = whole(key);
    mask.data<bool>()[place] = true;
  };
  std::vector<std::size_t> rank(at.count);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto owner = static_cast<std::size_t>(at.number[text_[rows[i]]]);
    const std::size_t query = owner * at.width + rank[owner]++;
    queries.data<std::int64_t>()[query] = whole(i);
    places.data<std::int64_t>()[i] = whole(query);
    see(rows[i], i);
  }
  for (std::size_t i = 0; i < frozen.size(); ++i) see(frozen[i], active + i);
  const std::vector<float> states_in = states(rows), states_kept = states(frozen);
  std::copy(states_in.begin(), states_in.end(), hidden.data<float>());
  std::copy(states_kept.begin(), states_kept.end(), kept.data<float>());
  Buffers buffers;
  add(buffers, contract::kHidden, hidden), add(buffers, contract::kFrozen, kept);
  add(buffers, contract::kQueryRows, queries), add(buffers, contract::kRowPlaces, places);
  add(buffers, contract::kKeyRows, keys), add(buffers, contract::kKeyMask, mask);
  add(buffers, contract::kHiddenOut, made);
  if (Status status = run_once(engine, buffers); !status.ok()) return status;
  out.assign(made.data<float>(), made.data<float>() + whole(rows.size()) * width);
  return {};
}

std::vector<float> EncoderBatch::states(const Rows& rows) const {
  const auto width = static_cast<std::size_t>(manifest_.model.hidden);
  std::vector<float> found(rows.size() * width);
  for (std::size_t i = 0; i < rows.size(); ++i) std::copy_n(&hidden_[rows[i] * width], width, &found[i * width]);
  return found;
}

void EncoderBatch::account(ClassifyStats& stats) const {
  stats.passes += passes_;
  stats.layer_rows += layer_rows_;
  stats.frozen_rows += frozen_rows_;
}

Ids positions_of(const Ids& ids, const std::optional<std::int64_t>& padding) {
  Ids found;
  std::int64_t next = padding ? *padding + 1 : 0;
  for (const std::int64_t id : ids) found.push_back(padding && id == *padding ? *padding : next++);
  return found;
}

}  // namespace eecompile
