// A batch: requests that run side by side over the slots of one pool, joining and leaving between steps (batch.py).
#include <algorithm>
#include <iterator>

#include "bundle_state.h"
#include "request.h"

namespace eecompile {
namespace {

constexpr std::size_t kDefaultSlots = 8;

// A request that has a slot: `fed` of its first tokens were run.
struct Live {
  Live(std::size_t number, const Ids& prompt, Ids first, Pool& pool, const Settings& settings, const ModelInfo& model,
       const GenerateOptions& options, std::int64_t most)
      : number(number),
        first(std::move(first)),
        stairs(pool),
        one(stairs, settings, options.sampling),
        request(model, settings, options, prompt, most) {}

  bool started() const { return fed == static_cast<std::int64_t>(first.size()); }

  std::size_t number;
  Ids first;  // the tokens that it starts with
  Staircase stairs;
  Continuation one;
  Request request;
  std::int64_t fed = 0;
};
using Lives = std::vector<Live*>;

// All requests of one call, from the first to join to the last to leave.
class Run {
 public:
  // askers: for as many slots.
  Run(const Manifest& manifest, const LoadedGraphs& graphs, const Settings& settings, Askers askers, std::size_t slots,
      const std::vector<Ids>& prompts, const GenerateOptions& options, const OnBatchToken& on_token)
      : manifest_(manifest),
        settings_(settings),
        askers_(std::move(askers)),
        pool_(manifest, graphs, slots),
        decoder_(manifest, graphs, askers_, static_cast<std::int64_t>(slots),
                 static_cast<std::int64_t>(slots) * (manifest.pending_cap + 1)),
        prompts_(prompts),
        options_(options),
        on_token_(on_token),
        outcomes_(prompts.size()) {}

  Result<std::vector<Outcome>> run() {
    for (admit(); !live_.empty(); admit()) {
      Lives ready, joining;
      for (const auto& live : live_) (live->started() ? ready : joining).push_back(live.get());
      if (Status status = prefill(joining); !status.ok()) return status;
      if (Status status = decode(ready); !status.ok()) return status;
      release();
    }
    return std::move(outcomes_);
  }

 private:
  // Gives prompts slots, as far as there are free ones.
  void admit() {
    while (next_ < prompts_.size() && live_.size() < pool_.slots()) {
      const std::size_t number = next_++;
      const Result<std::int64_t> most = room(manifest_, settings_, prompts_[number], options_.max_new_tokens);
      outcomes_[number].status = most.status();
      if (!most.ok()) continue;
      Result<Ids> first = pool_.take_up(prompts_[number]);
      outcomes_[number].status = first.status();
      if (!first.ok()) continue;
      live_.push_back(std::make_unique<Live>(number, prompts_[number], std::move(*first), pool_, settings_,
                                             manifest_.model, options_, *most));
      live_.back()->stairs.watch(askers_, settings_.rules);
    }
    while (pool_.close_gap()) continue;
  }

  // Runs a chunk of each prompt, in all no more than a prefill pass, and chooses the first tokens that come of it.
  Status prefill(Lives joining) {
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
    collect(through);
    return {};
  }

  Status decode(const Lives& ready) {
    if (ready.empty()) return {};
    const Clock::time_point began = Clock::now();
    if (Status status = decoder_.step(those(ready)); !status.ok()) return status;
    Lives full;
    for (Live* live : ready)
      if (live->request.wants_flush(live->one)) full.push_back(live);
    if (Status status = decoder_.flush(those(full)); !status.ok()) return status;
    const double seconds = seconds_since(began);
    for (Live* live : ready) live->request.stats().decode_seconds += seconds;
    collect(ready);
    return {};
  }

  static Those those(const Lives& lives) {
    Those found;
    for (Live* live : lives) found.push_back(&live->one);
    return found;
  }

  // Hands out what became certain, and notes which requests are over.
  void collect(const Lives& lives) {
    for (Live* live : lives) {
      const OnToken tell = [&](const Token& token) { return !on_token_ || on_token_(live->number, token); };
      if (Status status = live->request.take(live->one, tell); !status.ok()) {
        live->request.stats().stop_reason = "error";
        outcomes_[live->number].status = std::move(status);
      }
    }
  }

  // Takes finished requests out of their slots.
  void release() {
    const auto over = [&](const std::unique_ptr<Live>& live) {
      if (!live->request.done()) return false;
      live->stairs.leave();
      outcomes_[live->number].generation = std::move(live->request.found());
      return true;
    };
    live_.erase(std::remove_if(live_.begin(), live_.end(), over), live_.end());
  }

  const Manifest& manifest_;
  const Settings& settings_;
  Askers askers_;
  Pool pool_;
  Decoder decoder_;
  const std::vector<Ids>& prompts_;
  const GenerateOptions& options_;
  const OnBatchToken& on_token_;
  std::vector<std::unique_ptr<Live>> live_;
  std::vector<Outcome> outcomes_;
  std::size_t next_ = 0;
};

}  // namespace

Result<std::vector<Outcome>> Session::State::run_many(const std::vector<Ids>& prompts, const GenerateOptions& options,
                                                      const OnBatchToken& on_token, std::size_t slots) const {
  const auto most = static_cast<std::size_t>(bundle->files.manifest.slots);
  if (slots == 0) slots = std::min(most, kDefaultSlots);
  if (slots > most)
    return Status{Code::kUsage,
                  std::to_string(slots) + " slots are not from 1 to the bundle's " + std::to_string(most), "",
                  "build with --batch " + std::to_string(slots)};
  if (Status status = check_sampling(options.sampling); !status.ok()) return status;
  if (options.sampling.sled)
    return Status{Code::kUsage, "SLED does not run in batches", "", "run the prompts one by one, in mode full"};
  return Run(bundle->files.manifest, bundle->graphs, settings, bundle->askers(slots), slots, prompts, options, on_token)
      .run();
}

}  // namespace eecompile
