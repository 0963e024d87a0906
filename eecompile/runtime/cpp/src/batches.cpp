// Batch as applications see it, and what is made of it: batches of a bundle, and many prompts of a session.
#include <algorithm>

#include "batch_state.h"

namespace eecompile {
namespace {

constexpr std::size_t kDefaultSlots = 8;

Result<std::size_t> slots_of(const Manifest& manifest, std::size_t slots) {
  const auto most = static_cast<std::size_t>(manifest.slots);
  if (slots == 0) return std::min(most, kDefaultSlots);
  if (slots <= most) return slots;
  return usage(std::to_string(slots) + " slots are not from 1 to the bundle's " + std::to_string(most),
               "build with --batch " + std::to_string(slots));
}

}  // namespace

Batch::Batch(std::unique_ptr<State> state) : state_(std::move(state)) {}
Batch::Batch(Batch&&) noexcept = default;
Batch& Batch::operator=(Batch&&) noexcept = default;
Batch::~Batch() = default;

bool Batch::busy() const { return state_->busy(); }
std::size_t Batch::free() const { return state_->free(); }
std::vector<Finished> Batch::take_finished() { return state_->take_finished(); }

Result<std::size_t> Batch::add(const Ids& prompt, const GenerateOptions& options, const RequestOptions& own) {
  try {
    return state_->add(prompt, options, own);
  } catch (const std::exception& e) {
    return thrown("the request cannot be queued", e);
  }
}

Status Batch::step(const OnBatchToken& on_token) {
  try {
    return state_->step(on_token);
  } catch (const std::exception& e) {
    return thrown("the batch cannot be stepped", e);
  }
}

Status Batch::cancel(std::size_t request) {
  try {
    if (!state_->knows(request)) return usage("the request is not of this batch");
    return state_->cancel(request);
  } catch (const std::exception& e) {
    return thrown("the request cannot be cancelled", e);
  }
}

Result<Batch> Bundle::batch(const SessionOptions& options, std::size_t slots) const {
  try {
    Result<Settings> settings = settings_of(state_->files, options);
    if (!settings.ok()) return settings.status();
    const Result<std::size_t> chosen = slots_of(state_->files.manifest, slots);
    if (!chosen.ok()) return chosen.status();
    return Batch(std::make_unique<Batch::State>(
        state_, options, std::make_shared<const Settings>(std::move(*settings)), *chosen));
  } catch (const std::exception& e) {
    return thrown("the batch cannot be made", e);
  }
}

// Prompts are drawn as slots fall free.
Result<std::vector<Outcome>> Session::State::run_many(const std::vector<Ids>& prompts, const GenerateOptions& options,
                                                      const OnBatchToken& on_token, std::size_t slots) const {
  const Result<std::size_t> chosen = slots_of(bundle->files.manifest, slots);
  if (!chosen.ok()) return chosen.status();
  if (Status status = check_batched(options.sampling); !status.ok()) return status;
  Batch::State batch(bundle, {}, std::make_shared<const Settings>(settings), *chosen);
  std::vector<Outcome> outcomes(prompts.size());
  std::vector<std::size_t> places;  // of the batch's requests among the prompts
  const OnBatchToken tell = [&](std::size_t one, const Token& token) { return !on_token || on_token(places[one], token); };
  for (std::size_t next = 0; next < prompts.size() || batch.busy();) {
    for (; next < prompts.size() && batch.free() > 0; ++next) {
      const Result<std::size_t> made = batch.add(prompts[next], options, {});
      if (made.ok()) places.push_back(next);
      if (!made.ok()) outcomes[next].status = made.status();
    }
    if (Status status = batch.step(tell); !status.ok()) return status;
    for (Finished& one : batch.take_finished()) outcomes[places[one.request]] = std::move(one.outcome);
  }
  return outcomes;
}

}  // namespace eecompile
