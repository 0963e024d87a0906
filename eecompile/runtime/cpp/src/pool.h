// A pool of slots: the caches that sequences share, and the passes that run several of them at once (pool.py).
//
// Each sequence has a slot of the same caches. A pass runs a contiguous range of slots. Those in the range that take no
// part, and rows that only fill a slot up, are padding: zeros, written behind the slot's filled rows, where nothing
// sees them before they are overwritten.
// Thread safety: belongs to one session or batch. Cost: for each slot the caches and, before each step, a pass's rows.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <vector>

#include "caches.h"
#include "graphs.h"
#include "manifest.h"
#include "plan.h"
#include "source.h"

namespace eecompile {

class Staircase;
using Stairs = std::vector<Staircase*>;

// Tokens to embed into a staircase's first boundary.
struct Tokens {
  const std::int64_t* ids = nullptr;
  std::int64_t count = 0;
};

class Pool {
 public:
  // each_pass: rows whose arithmetic costs as much as a pass itself.
  Pool(const Manifest& manifest, const LoadedGraphs& graphs, std::size_t slots, double each_pass = kPassRows);
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  const Manifest& manifest() const { return manifest_; }
  std::int64_t most() const { return most_; }  // rows of a pass over several slots
  double each_pass() const { return each_pass_; }
  std::size_t slots() const { return slots_.size(); }
  std::int64_t layers(std::size_t k) const;                // of step k
  const Caches& caches() const { return caches_; }
  float* boundary(std::size_t k, std::size_t slot) const;  // the rows [.., D] that wait before step k in a slot

  // The tokens that a sequence runs first: its prompt's own, or where that is a source, which is encoded here for the one
  // sequence of such a pool, the one that its target begins with.
  Result<Ids> take_up(const Ids& prompt);

  // Embeds tokens of each staircase into its first boundary, in one pass: at most `most` of them.
  Status embed(const Stairs& stairs, const std::vector<Tokens>& tokens);

  // Runs step k on everything that waits before it in each of `stairs`. The rows join the next boundary; after the last
  // step they are finished: normalised and ready for the head.
  Status run_step(std::size_t k, const Stairs& stairs);

  // Fills step k's cache from the rows that were left before it, where there are any (propagate).
  Status fill(std::size_t k, const Stairs& stairs);

  // (slot, rows that a pass would need for it), slots ascending, of what waits before step k.
  Waiting waiting(std::size_t k, const Stairs& stairs) const;

  void make_room(std::int64_t rows);  // has room for `rows` tokens in each slot and step
  std::size_t join(Staircase& one);   // gives the lowest free slot to `one`; there has to be one
  void leave(const Staircase& one);   // frees its slot, and memory that no other sequence is long enough for
  bool close_gap();                   // moves the sequence in the highest slot to a free one below, if there is such
  void reset();                       // forgets everything; short caches and their bindings are kept

 private:
  using Key = std::array<std::int64_t, 5>;  // boundary that a pass fills, whether K/V-only, slots from and to, rows
  struct Place {                            // of a slot's first row in a pass
    std::int64_t row = 0, position = 0;
  };

  Status run_ranges(std::size_t k, const Waiting& rows, const Stairs& stairs, bool kv);
  Status run_range(std::size_t k, const Range& range, const Stairs& stairs, bool kv);
  Status repeat(std::size_t k, const Range& range, const Stairs& stairs);
  Status again(std::size_t k, Staircase& one, const float* rows, std::int64_t count, std::int64_t first);
  void place(std::size_t k, const std::vector<Place>& places, std::int64_t rows);
  void shrink(std::int64_t longest);
  Status pass(const Key& key);
  Result<std::unique_ptr<Pass>> bind(const Key& key) const;

  const Manifest& manifest_;
  const LoadedGraphs& graphs_;
  std::vector<Staircase*> slots_;  // null where free
  double each_pass_;
  std::int64_t wait_, most_;       // rows that may wait in a boundary; rows of a pass
  Caches caches_;
  Source source_;
  std::vector<Tensor> boundary_;  // [slots, wait, D] each
  Tensor in_, out_, ids_, positions_, start_;
  std::map<Key, std::unique_ptr<Pass>> bound_;
};

}  // namespace eecompile
