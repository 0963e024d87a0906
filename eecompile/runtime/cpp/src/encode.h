// A batch of texts on its way through an encoder's segments: which rows go on, which are frozen, which are gone
// (encode.py).
//
// The rows of all texts stand one after the other, in order of text and place. A pass takes exactly the rows that go on
// (compaction); frozen rows of the same texts give keys and values.
// Thread safety: belongs to one request; engines are shared. Cost: N x D numbers, and what one pass takes.
#pragma once

#include <cstdint>
#include <vector>

#include "eecompile/classifier.h"
#include "manifest.h"
#include "graphs.h"

namespace eecompile {

constexpr std::size_t kLeastRows = 2;  // a product of one row takes another kernel, whose last bits differ

using Rows = std::vector<std::size_t>;

class EncoderBatch {
 public:
  EncoderBatch(const Manifest& manifest, const LoadedGraphs& graphs, const std::vector<const EncodedText*>& texts);

  Status embed();

  // Runs a segment for the rows `going` [N]; the other rows of their texts are frozen.
  Status run(std::size_t segment, const std::vector<bool>& going);

  std::size_t texts() const { return texts_.size(); }
  std::size_t size() const { return text_.size(); }                  // N
  std::size_t text(std::size_t row) const { return text_[row]; }     // whose a row is
  std::size_t first(std::size_t text) const { return first_[text]; }  // a text's first row
  bool special(std::size_t row) const { return special_[row]; }
  std::vector<float> states(const Rows& rows) const;  // the latest hidden states [n, D] of rows
  void account(ClassifyStats& stats) const;           // adds what the batch has cost

 private:
  Status pass(const Engine& engine, const Rows& rows, const Rows& frozen, std::vector<float>& out) const;

  const Manifest& manifest_;
  const LoadedGraphs& graphs_;
  std::vector<const EncodedText*> texts_;
  Rows text_, place_, first_;  // of each row; first row of each text
  std::vector<bool> special_;
  std::vector<float> hidden_;  // [N, D]
  std::int64_t passes_ = 0, layer_rows_ = 0, frozen_rows_ = 0;
};

// 0, 1, 2, ...; with a padding id p: p + 1, p + 2, ..., where the id p itself stands at p and is not counted.
Ids positions_of(const Ids& ids, const std::optional<std::int64_t>& padding);

}  // namespace eecompile
