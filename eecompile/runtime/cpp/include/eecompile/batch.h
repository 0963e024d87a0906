// A batch: requests that run side by side, joining and leaving between steps.
//
//   auto batch = bundle->batch({"confident"}, 8);
//   for (const eecompile::Ids& prompt : prompts) batch->add(prompt);
//   while (batch->busy()) {
//     batch->step([](std::size_t request, const eecompile::Token& t) { return show(request, t.id); });
//     for (const eecompile::Finished& one : batch->take_finished()) close(one.request);
//   }
//
// Every request gives what a session of its own would give. A step is one engine pass a segment for all of them, or a
// few where they wait far apart. Nothing here throws.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "eecompile/status.h"
#include "eecompile/values.h"

namespace eecompile {

// What became of one request; where `status` is not fine, `generation` is what there was until then.
struct Outcome {
  Status status;
  Generation generation;
};

// A request that is over, by its number.
struct Finished {
  std::size_t request = 0;
  Outcome outcome;
};

// Called for every token as it becomes certain, with the number of its request, in the thread that generates; false
// ends that request ("cancelled").
using OnBatchToken = std::function<bool(std::size_t, const Token&)>;

// What a request has in place of its batch's own options.
struct RequestOptions {
  std::optional<std::string> mode = {};
  std::optional<std::int64_t> minimum_depth = {}, budget = {};
};

// Requests over the slots of one pool. Not thread-safe: batches and sessions of a bundle are, from each other. It may
// outlive its Bundle. Cost: in each slot the K/V cache of the longest sequence, and for each a prefill pass's rows.
class Batch {
 public:
  Batch(Batch&&) noexcept;
  Batch& operator=(Batch&&) noexcept;
  ~Batch();

  // Queues a request, which runs from the next step on that has a slot for it, in the order they came in; returns its
  // number, counted from 0. Fails as Session::generate would where it cannot be served, and as Bundle::session for what
  // `own` asks. A callback may add requests, too.
  Result<std::size_t> add(const Ids& prompt, const GenerateOptions& options = {}, const RequestOptions& own = {});

  // Runs a chunk of the prompts that are not through yet, all of them together no longer than a prefill pass, then one
  // token of every other sequence. A request that fails ends with its own status, and the others go on. Where the step
  // itself fails, so has the batch: what was not over is lost, and it takes no more.
  Status step(const OnBatchToken& on_token = {});

  // The requests that are over since this was last asked, in the order they ended.
  std::vector<Finished> take_finished();

  // Ends a request that is not over ("cancelled"); what it has so far stays its generation. kUsage for one that is not of
  // this batch, or from a callback, which returns false instead.
  Status cancel(std::size_t request);

  bool busy() const;         // whether any request is not over
  std::size_t free() const;  // slots that no request has or waits for

 private:
  friend class Bundle;
  friend class Session;
  struct State;
  explicit Batch(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace eecompile
