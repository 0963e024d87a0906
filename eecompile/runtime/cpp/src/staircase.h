// The staircase: one sequence's progress through the schedule, and the passes that move it (staircase.py, pool.py).
//
// filled[k] tokens have been through step k, filled[0] >= filled[1] >= ...; the tokens between two steps are pending:
// their hidden states wait in boundary k and join the next pass that goes that deep (catch_up), so that every cache row
// is what the full model would have written.
// Thread safety: belongs to one session. Cost: the caches, and for each step a pass's rows of hidden states.
#pragma once

#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "caches.h"
#include "manifest.h"
#include "engine.h"

namespace eecompile {

// A bundle's graphs, loaded; shared by all sessions. heads: the small ones, by name.
struct LoadedGraphs {
  SharedEngine embed, head;
  std::vector<SharedEngine> segments, exits;
  std::map<std::string, SharedEngine> heads;
  std::string backend;  // that they are loaded into

  Memory& memory() const { return *embed->memory(); }  // which all of them share
};

class Staircase {
 public:
  Staircase(const Manifest& manifest, const LoadedGraphs& graphs);

  std::size_t steps() const { return manifest_.schedule.size(); }
  std::int64_t length() const { return length_; }          // tokens embedded
  std::int64_t settled() const { return filled_.back(); }  // tokens that have been through the last step
  std::int64_t passes() const { return passes_; }          // since the last reset
  std::int64_t layer_rows() const { return layer_rows_; }
  std::int64_t waiting(std::size_t k) const { return waiting_[k]; }

  // The rows [newest_rows, D] that the last step computed, newest last.
  const float* newest() const { return newest_; }
  std::int64_t newest_rows() const { return newest_rows_; }

  void reset();                      // forgets the sequence
  void rewind(std::int64_t length);  // drops every token from position `length` on; nothing may be pending before it
  Status append(const std::int64_t* tokens, std::int64_t count);  // embeds at most a pass's rows
  Status run_step(std::size_t k);                                 // runs step k on everything that waits before it
  Status prefill(const Ids& tokens);  // runs tokens through every step, a pass's rows at a time

 private:
  void put(std::size_t k, std::int64_t rows);  // adds the first `rows` of out_ to boundary k
  Status pass(std::size_t k, std::int64_t rows);
  Result<std::unique_ptr<Pass>> bind(std::size_t k, std::int64_t rows) const;
  void forget_bindings(std::size_t k);

  const Manifest& manifest_;
  const LoadedGraphs& graphs_;
  Caches caches_;
  std::vector<Tensor> boundary_;  // [most, D] each
  Tensor in_, out_, ids_, positions_, start_;
  std::vector<std::int64_t> filled_, waiting_;
  // By boundary that a pass fills, and rows.
  std::map<std::pair<std::size_t, std::int64_t>, std::unique_ptr<Pass>> bound_;
  std::int64_t length_ = 0, passes_ = 0, layer_rows_ = 0, newest_rows_ = 0;
  const float* newest_ = nullptr;
};

}  // namespace eecompile
