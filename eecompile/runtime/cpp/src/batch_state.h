// What Batch hides: requests over the slots of one pool (batch.py). Thread safety and cost: its.
#pragma once

#include <deque>
#include <exception>
#include <memory>

#include "bundle_state.h"
#include "eecompile/batch.h"
#include "fault.h"
#include "request.h"

namespace eecompile {

using SharedSettings = std::shared_ptr<const Settings>;

// A request that waits for a slot; most: as `room` says.
struct Queued {
  std::size_t number;
  Ids prompt;
  GenerateOptions options;
  SharedSettings settings;
  std::int64_t most;
};

// A request that has a slot: `fed` of the tokens that it starts with were run.
struct Live {
  Live(const Queued& asked, Ids tokens, Pool& pool, const ModelInfo& model)
      : number(asked.number),
        first(std::move(tokens)),
        settings(asked.settings),
        stairs(pool),
        one(stairs, *settings, asked.options.sampling),
        request(model, *settings, asked.options, asked.prompt, asked.most) {}

  bool started() const { return fed == static_cast<std::int64_t>(first.size()); }

  std::size_t number;
  Ids first;
  SharedSettings settings;
  Staircase stairs;
  Continuation one;
  Request request;
  Status fault;
  std::int64_t fed = 0;
};

// Why `how` cannot be run in a batch; fine where it can.
Status check_batched(const Sampling& how);

struct Batch::State {
 public:
  // own: what requests run by that do not say otherwise; how: what it was made of.
  State(std::shared_ptr<const Bundle::State> opened, SessionOptions how, SharedSettings own, std::size_t slots);

  bool busy() const { return !failed_ && (!live_.empty() || !queue_.empty()); }
  std::size_t free() const;
  bool knows(std::size_t number) const { return number < count_; }
  std::vector<Finished> take_finished() noexcept { return std::exchange(finished_, {}); }

  Result<std::size_t> add(const Ids& prompt, const GenerateOptions& options, const RequestOptions& own);
  Status step(const OnBatchToken& on_token);
  Status cancel(std::size_t number);

 private:
  using Lives = std::vector<Live*>;

  template <typename Work>
  Status change(Work work);
  Result<SharedSettings> settings_with(const RequestOptions& own) const;
  void admit();
  Status prefill(Lives joining, const OnBatchToken& on_token);
  Status decode(const Lives& ready, const OnBatchToken& on_token);
  void release();
  static Those those(const Lives& lives);
  static void collect(const Lives& lives, const OnBatchToken& on_token);

  const std::shared_ptr<const Bundle::State> bundle_;
  const Manifest& manifest_;
  const SessionOptions how_;
  const SharedSettings own_;
  Askers askers_;
  Pool pool_;
  Decoder decoder_;
  std::deque<Queued> queue_;
  std::vector<std::unique_ptr<Live>> live_;
  std::vector<Finished> finished_;
  std::size_t count_ = 0;
  bool changing_ = false, failed_ = false;  // in a step, or cancelling; whether one failed
};

}  // namespace eecompile
