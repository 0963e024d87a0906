// Exits with a decoder layer of their own: a step of the staircase beside the main path (modules.py).
//
// Such an exit attends to the rows of all earlier tokens at its boundary. It gets to see them as they come by and keeps
// them waiting; asked about the newest, it runs what waits, as a segment does, into a cache of its own.
// Thread safety: belongs to one session or batch. Cost: that cache, and a prefill pass's rows for each slot.
#pragma once

#include <set>

#include "askers.h"
#include "plan.h"

namespace eecompile {

class LayerAsker : public ExitAsker {
 public:
  // each_pass: as of Pool.
  LayerAsker(SharedEngine engine, const Manifest& manifest, std::size_t exit, const ExitPolicy& policy,
             std::size_t slots, double each_pass);

  // As ExitAsker's, for the newest row that was offered of each of `slots`, which `rows` are; what waits there runs.
  Status ask(const float* rows, const Walks& walks, const Slots& slots) override;

  Status offer(const float* rows, std::int64_t n, std::size_t slot);  // takes in the rows that come next in a slot
  void rewind(std::int64_t length, std::size_t slot);                 // drops its rows from position `length` on
  void leave(std::size_t slot);                                       // forgets its sequence
  void move(std::size_t source, std::size_t target);                  // moves it to a free slot

 private:
  Status run(const Range& range, const std::set<std::size_t>& taking_part);
  Result<std::unique_ptr<Pass>> bind(const Range& range) const;

  const Manifest& manifest_;
  double each_pass_;
  std::int64_t wait_, most_;
  std::vector<std::int64_t> filled_, waiting_;  // rows of each slot in its cache, and behind them
  Tensor rows_, positions_, start_;             // rows_: [slots, wait, D]
  RowBuffers flat_;                             // of a pass; buffers_ are of those that asked
  Caches caches_;
  std::map<Range, std::unique_ptr<Pass>> passes_;
};

}  // namespace eecompile
