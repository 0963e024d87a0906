// Classifying: batches walk down the segments, and what an exit is sure of leaves (classify.py).
//
//   batch = embed(texts)
//   for each step of the schedule:
//       run the segment on the rows that go on
//       if the exit is open: ask it of them; what fires is answered and leaves the batch
//   ask the head of what is left
//
// Per text ("sentence") a text leaves with all of its rows: where each token has a label of its own, once every one of
// its tokens fires. Per token a row leaves alone, and deeper layers project its key and value from the state that it
// left with. Either way a row whose gate said continue goes on, and no row waits for another.
// Thread safety: a walk belongs to one request. Cost: EncoderBatch's, and C numbers a unit.
#pragma once

#include <vector>

#include "classifier_rules.h"
#include "encode.h"
#include "labels.h"

namespace eecompile {

// What the walks of one bundle ask, in exits' order; shared.
struct LabelAskers {
  LabelAskers(const Manifest& manifest, const LoadedGraphs& graphs);

  std::vector<AskedExit> exits;
  AskedExit head;
};

// One batch on its way down. Its units are its texts, or its rows where each token has a label.
class LabelWalk {
 public:
  LabelWalk(const Manifest& manifest, const LoadedGraphs& graphs, const ClassifierSettings& settings, const LabelAskers& askers,
       const std::vector<const EncodedText*>& texts);

  Status run();

  const float* logits(std::size_t unit) const { return &logits_[unit * classes_]; }
  std::int64_t depth(std::size_t unit) const { return depth_[unit]; }
  const EncoderBatch& batch() const { return batch_; }

 private:
  Status leave(std::size_t exit);
  Status finish();
  void answer(const Rows& units, const std::vector<bool>& which, const Said& said, std::int64_t depth);
  std::vector<bool> fired(const Rows& units, const std::vector<bool>& fires) const;
  void remove(const Rows& units, const std::vector<bool>& which);
  Rows units() const;  // those that go on
  std::vector<float> states(const Rows& units) const;

  const Manifest& manifest_;
  const ClassifierSettings& settings_;
  const LabelAskers& askers_;
  EncoderBatch batch_;
  const bool labels_tokens_, regression_;
  const std::size_t classes_;
  std::vector<bool> going_;       // by row
  std::vector<float> logits_;     // [units, C]
  std::vector<float> before_;     // by unit: what the exit before said, of a regression
  std::vector<std::int64_t> depth_;  // by unit
};

}  // namespace eecompile
