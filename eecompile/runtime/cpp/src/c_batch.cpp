// Many requests at once in the C interface.
#include "c_parts.h"

using namespace eecompile;

struct eecompile_batch {
  Batch batch;
};

namespace {

OnBatchToken telling(eecompile_on_batch_token on_token, void* context) {
  if (on_token == nullptr) return {};
  return [on_token, context](std::size_t request, const Token& token) {
    return on_token(context, static_cast<std::int64_t>(request), token.id, token.exit_layer) != 0;
  };
}

void tell_end(std::size_t request, const Outcome& one, eecompile_on_end on_end, void* context) {
  if (on_end == nullptr) return;
  const eecompile_stats stats = stats_of(one.generation.stats);
  const std::string fault = one.status.ok() ? "" : one.status.text();
  on_end(context, static_cast<std::int64_t>(request), static_cast<std::int32_t>(one.status.code), fault.c_str(), &stats);
}

RequestOptions options_of(const eecompile_request_options& given) {
  RequestOptions options;
  if (given.mode != nullptr) options.mode = given.mode;
  options.minimum_depth = unless_zero(given.minimum_depth);
  options.budget = unless_zero(given.budget);
  return options;
}

}  // namespace

std::int32_t eecompile_generate_many(eecompile_session* session, const eecompile_prompt* prompts, size_t prompt_count,
                                     size_t slots, const eecompile_generate_options* options,
                                     eecompile_on_batch_token on_token, eecompile_on_end on_end, void* context) {
  if (session == nullptr || lacks(prompts, prompt_count)) return fail("there is no session or no prompt");
  if (sizeless(options)) return fail(kNoSize);
  return guarded([&]() -> std::int32_t {
    std::vector<Ids> all;
    for (std::size_t i = 0; i < prompt_count; ++i) {
      if (lacks(prompts[i].ids, prompts[i].count)) return fail("a prompt has no tokens");
      all.emplace_back(prompts[i].ids, prompts[i].ids + prompts[i].count);
    }
    const Result<std::vector<Outcome>> found =
        session->session.generate_many(all, options_of(known(options)), telling(on_token, context), slots);
    if (!found.ok()) return fail(found.status());
    for (std::size_t i = 0; i < found->size(); ++i) tell_end(i, (*found)[i], on_end, context);
    return EECOMPILE_OK;
  });
}

std::int32_t eecompile_batch_new(const eecompile_bundle* bundle, const eecompile_session_options* options, size_t slots,
                                 eecompile_batch** batch) {
  if (bundle == nullptr || batch == nullptr) return fail("there is no bundle, or nowhere to put the batch");
  *batch = nullptr;
  if (sizeless(options)) return fail(kNoSize);
  return guarded([&]() -> std::int32_t {
    Result<Batch> made = bundle->bundle.batch(options_of(known(options)), slots);
    if (!made.ok()) return fail(made.status());
    *batch = new eecompile_batch{std::move(made).value()};
    return EECOMPILE_OK;
  });
}

void eecompile_batch_free(eecompile_batch* batch) { delete batch; }

std::int32_t eecompile_batch_add(eecompile_batch* batch, const int64_t* prompt, size_t count,
                                 const eecompile_generate_options* options, const eecompile_request_options* own,
                                 int64_t* request) {
  if (batch == nullptr || lacks(prompt, count)) return fail("there is no batch or no prompt");
  if (sizeless(options, own)) return fail(kNoSize);
  return guarded([&]() -> std::int32_t {
    const Ids ids(prompt, prompt + count);
    const Result<std::size_t> made = batch->batch.add(ids, options_of(known(options)), options_of(known(own)));
    if (!made.ok()) return fail(made.status());
    if (request != nullptr) *request = static_cast<std::int64_t>(*made);
    return EECOMPILE_OK;
  });
}

std::int32_t eecompile_batch_step(eecompile_batch* batch, eecompile_on_batch_token on_token, eecompile_on_end on_end,
                                  void* context, int32_t* busy) {
  if (batch == nullptr) return fail("there is no batch");
  return guarded([&]() -> std::int32_t {
    const Status status = batch->batch.step(telling(on_token, context));
    for (const Finished& one : batch->batch.take_finished()) tell_end(one.request, one.outcome, on_end, context);
    if (busy != nullptr) *busy = batch->batch.busy() ? 1 : 0;
    return status.ok() ? EECOMPILE_OK : fail(status);
  });
}

std::int32_t eecompile_batch_cancel(eecompile_batch* batch, int64_t request) {
  if (batch == nullptr) return fail("there is no batch");
  return guarded([&]() -> std::int32_t {
    const Status status = batch->batch.cancel(static_cast<std::size_t>(request));
    return status.ok() ? EECOMPILE_OK : fail(status);
  });
}

size_t eecompile_batch_free_slots(const eecompile_batch* batch) { return batch == nullptr ? 0 : batch->batch.free(); }
