#include "batch_state.h"

#include <algorithm>
#include <iterator>

namespace eecompile {
namespace {

Status over() { return usage("the batch has failed before", "make another"); }

}  // namespace

Status check_batched(const Sampling& how) {
  if (Status status = check_sampling(how); !status.ok() || !how.sled) return status;
  return usage("SLED does not run in batches", "run the prompts one by one, in mode full");
}

Batch::State::State(std::shared_ptr<const Bundle::State> opened, SessionOptions how, SharedSettings own,
                    std::size_t slots)
    : bundle_(std::move(opened)),
      manifest_(bundle_->files.manifest),
      how_(std::move(how)),
      own_(std::move(own)),
      askers_(bundle_->askers(slots)),
      pool_(manifest_, bundle_->graphs, slots, bundle_->files.each_pass),
      decoder_(manifest_, bundle_->graphs, askers_, static_cast<std::int64_t>(slots),
               static_cast<std::int64_t>(slots) * (manifest_.pending_cap + 1)) {}

std::size_t Batch::State::free() const {
  const std::size_t taken = live_.size() + queue_.size();
  return failed_ || taken > pool_.slots() ? 0 : pool_.slots() - taken;
}

Result<std::size_t> Batch::State::add(const Ids& prompt, const GenerateOptions& options, const RequestOptions& own) {
  if (failed_) return over();
  if (Status status = check_batched(options.sampling); !status.ok()) return status;
  const Result<SharedSettings> settings = settings_with(own);
  if (!settings.ok()) return settings.status();
  const Result<std::int64_t> most = room(manifest_, **settings, prompt, options.max_new_tokens);
  if (!most.ok()) return most.status();
  queue_.push_back({count_, prompt, options, *settings, *most});
  return count_++;
}

Result<SharedSettings> Batch::State::settings_with(const RequestOptions& own) const {
  if (!own.mode && !own.minimum_depth && !own.budget) return own_;
  SessionOptions how = how_;
  if (own.mode) how.mode = *own.mode;
  if (own.minimum_depth) how.minimum_depth = own.minimum_depth;
  if (own.budget) how.budget = own.budget;
  Result<Settings> made = settings_of(bundle_->files, how);
  if (!made.ok()) return made.status();
  return SharedSettings(std::make_shared<const Settings>(std::move(*made)));
}

// Does `work`, with which the batch fails; not from inside of itself.
template <typename Work>
Status Batch::State::change(Work work) {
  if (failed_) return over();
  if (changing_) return usage("a callback steps or cancels in the batch that calls it", "return false to cancel");
  changing_ = true;
  Status status;
  try {
    status = work();
  } catch (const std::exception& e) {
    status = thrown("the batch failed", e);
  }
  changing_ = false;
  failed_ = !status.ok();
  return status;
}

Status Batch::State::step(const OnBatchToken& on_token) {
  return change([&]() -> Status {
    admit();
    Lives ready, joining;
    for (const auto& live : live_) (live->started() ? ready : joining).push_back(live.get());
    if (Status status = prefill(std::move(joining), on_token); !status.ok()) return status;
    if (Status status = decode(ready, on_token); !status.ok()) return status;
    release();
    return {};
  });
}

Status Batch::State::cancel(std::size_t number) {
  return change([&]() -> Status {
    for (const auto& live : live_)
      if (live->number == number) live->request.stats().stop_reason = "cancelled";
    release();
    const auto queued = std::find_if(queue_.begin(), queue_.end(), [&](const Queued& q) { return q.number == number; });
    if (queued == queue_.end()) return {};
    Generation none;
    none.stats.prompt_tokens = static_cast<std::int64_t>(queued->prompt.size());
    none.stats.stop_reason = "cancelled";
    finished_.push_back({number, {{}, std::move(none)}});
    queue_.erase(queued);
    return {};
  });
}

// Gives requests slots, as far as there are free ones.
void Batch::State::admit() {
  for (; !queue_.empty() && live_.size() < pool_.slots(); queue_.pop_front()) {
    const Queued& next = queue_.front();
    Result<Ids> first = pool_.take_up(next.prompt);
    if (!first.ok()) {
      finished_.push_back({next.number, {first.status(), {}}});
      continue;
    }
    live_.push_back(std::make_unique<Live>(next, std::move(*first), pool_, manifest_.model));
    live_.back()->stairs.watch(askers_, next.settings->rules);
  }
  while (pool_.close_gap()) continue;
}

Those Batch::State::those(const Lives& lives) {
  Those found;
  for (Live* live : lives) found.push_back(&live->one);
  return found;
}

// Runs a chunk of each prompt, in all no more than a prefill pass, and chooses the first tokens that come of it.
Status Batch::State::prefill(Lives joining, const OnBatchToken& on_token) {
  if (joining.empty()) return {};
  const Clock::time_point began = Clock::now();
  if (static_cast<std::int64_t>(joining.size()) > manifest_.prefill_rows)
    joining.resize(static_cast<std::size_t>(manifest_.prefill_rows));
  const std::int64_t share = manifest_.prefill_rows / static_cast<std::int64_t>(joining.size());
  Stairs stairs;
  std::vector<Tokens> chunks;
  for (Live* live : joining) {
    const std::int64_t left = static_cast<std::int64_t>(live->first.size()) - live->fed;
    stairs.push_back(&live->stairs);
    chunks.push_back({live->first.data() + live->fed, std::min(share, left)});
    live->fed += chunks.back().count;
  }
  if (Status status = pool_.embed(stairs, chunks); !status.ok()) return status;
  for (std::size_t k = 0; k < manifest_.schedule.size(); ++k)
    if (Status status = pool_.run_step(k, stairs); !status.ok()) return status;
  Lives through;
  std::copy_if(joining.begin(), joining.end(), std::back_inserter(through), [](Live* one) { return one->started(); });
  if (Status status = decoder_.start(those(through)); !status.ok()) return status;
  const double seconds = seconds_since(began);
  for (Live* live : joining) live->request.stats().prefill_seconds += seconds;
  collect(through, on_token);
  return {};
}

Status Batch::State::decode(const Lives& ready, const OnBatchToken& on_token) {
  if (ready.empty()) return {};
  const Clock::time_point began = Clock::now();
  if (Status status = decoder_.step(those(ready)); !status.ok()) return status;
  Lives full;
  for (Live* live : ready)
    if (live->request.wants_flush(live->one)) full.push_back(live);
  if (Status status = decoder_.flush(those(full)); !status.ok()) return status;
  const double seconds = seconds_since(began);
  for (Live* live : ready) live->request.stats().decode_seconds += seconds;
  collect(ready, on_token);
  return {};
}

// Hands out what became certain, and notes which requests are over.
void Batch::State::collect(const Lives& lives, const OnBatchToken& on_token) {
  for (Live* live : lives) {
    const OnToken tell = [&](const Token& token) { return !on_token || on_token(live->number, token); };
    if (Status status = live->request.take(live->one, tell); !status.ok()) {
      live->request.stats().stop_reason = "error";
      live->fault = std::move(status);
    }
  }
}

// Takes finished requests out of their slots.
void Batch::State::release() {
  const auto over = [&](const std::unique_ptr<Live>& live) {
    if (!live->request.done()) return false;
    live->stairs.leave();
    finished_.push_back({live->number, {std::move(live->fault), std::move(live->request.found())}});
    return true;
  };
  live_.erase(std::remove_if(live_.begin(), live_.end(), over), live_.end());
}

}  // namespace eecompile
