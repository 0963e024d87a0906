// One request: what was asked, what came of it, and what it cost (request.py).
//
// Thread safety: belongs to one session or batch. Cost: the ids that it emits.
#pragma once

#include "clock.h"
#include "decode.h"
#include "eecompile/values.h"

namespace eecompile {

// Why `how` is no sampling; fine where it is.
Status check_sampling(const Sampling& how);

// How many tokens to generate; fails where the request cannot be served.
Result<std::int64_t> room(const Manifest& manifest, const Settings& settings, const Ids& ids,
                          const std::optional<std::int64_t>& most);

class Request {
 public:
  // most: as `room` says.
  Request(const ModelInfo& model, const Settings& settings, const GenerateOptions& options, const Ids& prompt,
          std::int64_t most);

  // Notes the tokens that became certain and what the sequence has cost; fails where there will be no more. on_token:
  // false cancels the request.
  Status take(const Continuation& one, const OnToken& on_token);
  bool done() const { return !found_.stats.stop_reason.empty(); }
  bool wants_flush(const Continuation& one) const;  // whether drafts fill the request, or would end it
  Stats& stats() { return found_.stats; }
  Generation& found() { return found_; }

 private:
  bool ends(std::int64_t id) const;
  bool spent() const;

  const ModelInfo& model_;
  const Settings& settings_;
  const Ids ends_;
  const std::int64_t most_;
  Generation found_;
};

}  // namespace eecompile
