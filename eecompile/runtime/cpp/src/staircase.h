// The staircase: one sequence's progress through the schedule (staircase.py).
//
// filled[k] tokens have been through step k, filled[0] >= filled[1] >= ...; the tokens between two steps are pending:
// their hidden states wait in boundary k. What becomes of them is the K/V rule's to say: with catch_up they join the
// next pass that goes that deep, with propagate a K/V-only pass fills the next cache from them as they are, with
// selected they never enter deeper caches.
// Thread safety: belongs to one session or batch. Cost: a few numbers a step; the rows and caches are the pool's.
#pragma once

#include <map>
#include <vector>

#include "gates.h"
#include "modules.h"
#include "pool.h"

namespace eecompile {

class Staircase {
 public:
  explicit Staircase(Pool& pool);
  Staircase(const Staircase&) = delete;
  Staircase& operator=(const Staircase&) = delete;

  Pool& pool() const { return pool_; }
  std::size_t slot() const { return slot_; }
  std::size_t steps() const { return filled_.size(); }
  std::int64_t length() const { return length_; }                 // tokens embedded
  std::int64_t settled() const { return position(steps() - 1); }  // that went through the last step or never will
  std::int64_t pending() const { return length_ - settled(); }
  std::int64_t passes() const { return passes_; }  // that it took part in, K/V-only ones left out
  std::int64_t layer_rows() const { return layer_rows_; }
  std::int64_t waiting(std::size_t k) const { return waiting_[k]; }  // rows before step k
  std::int64_t left(std::size_t k) const { return left_[k]; }        // of these the first, for a K/V-only pass
  std::int64_t filled(std::size_t k) const { return filled_[k]; }
  std::int64_t position(std::size_t k) const { return filled_[k] + skipped_[k]; }  // of the first row before step k

  // The rows [newest_rows, D] that the last step computed, newest last.
  const float* newest() const { return newest_; }
  std::int64_t newest_rows() const { return newest_rows_; }
  const float* last_row() const { return newest_ + (newest_rows_ - 1) * pool_.manifest().model.hidden; }

  // From now on, lets those of the exits that attend to earlier rows and are open see the rows that come by.
  void watch(const Askers& askers, const Rules& rules);

  void reset();                      // forgets the sequence; for a staircase that has its pool to itself
  void rewind(std::int64_t length);  // drops every token from position `length` on; nothing may be pending before it
  Status append(const std::int64_t* tokens, std::int64_t count);  // embeds at most a pass's rows
  Status run_step(std::size_t k);                                 // runs step k on everything that waits before it
  Status prefill(const Ids& tokens);  // runs tokens through every step, a pass's rows at a time
  void leave_at(std::size_t k);  // lets all in boundary k go no deeper: propagate, of a token that exits before step k
  void stop_at(std::size_t k);   // lets all in boundary k end there: selected, of a token that exits before step k
  void leave();                  // gives the slot back; of no use afterwards

  // What the pool says of passes that ran.
  void embedded(const float* rows, std::int64_t count);  // the next tokens' rows
  void entered(std::int64_t count);                      // the same, where they lie elsewhere
  Status ran(std::size_t k, const float* rows);          // what step k turned all that waited before it into
  void went(std::size_t k);                              // the same, where the rows lie elsewhere
  void ran_again(std::size_t k, std::int64_t count);     // a cyclic gate had step k run once more on so many rows
  void propagated(std::size_t k);                        // a K/V-only pass has filled step k's cache from the left rows
  void move(std::size_t slot);                           // the sequence's rows are now in this slot

 private:
  void store(std::size_t k, const float* rows, std::int64_t count);  // puts rows behind those in boundary k
  void wait(std::size_t k, std::int64_t count);                      // counts them as some of those

  Pool& pool_;
  std::vector<std::int64_t> filled_, waiting_, left_, skipped_;
  std::map<std::size_t, LayerAsker*> watchers_;  // by exit
  std::int64_t length_ = 0, passes_ = 0, layer_rows_ = 0, newest_rows_ = 0;
  const float* newest_ = nullptr;
  const Stairs alone_;
  std::size_t slot_;
};

}  // namespace eecompile
