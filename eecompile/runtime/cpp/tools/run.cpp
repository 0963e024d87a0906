// eecompile-run: generate from a bundle, with the flags and the JSON of the Python command.
#include <cstdio>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "arguments.h"
#include "words.h"

namespace eecompile {
namespace {

int fail(const Status& status) {
  std::fprintf(stderr, "error %s\n", status.text().c_str());
  return status.exit_status();
}

std::string json_of(const Ids& prompt, const Generation& found, const nlohmann::ordered_json& text,
                    const std::string& mode) {
  const Stats& s = found.stats;
  nlohmann::ordered_json stats = {{"tokens_per_second", s.tokens_per_second()},
                                  {"prefill_seconds", s.prefill_seconds},
                                  {"mean_depth", s.mean_depth()},
                                  {"drafted", s.drafted},
                                  {"rejected", s.rejected},
                                  {"segment_passes", s.segment_passes},
                                  {"layer_rows", s.layer_rows}};
  const nlohmann::ordered_json whole = {
      {"prompt_ids", prompt}, {"token_ids", found.ids},       {"text", text},  {"exit_layers", found.exit_layers},
      {"mode", mode},         {"stop_reason", s.stop_reason}, {"stats", stats}};
  return whole.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

int run(const std::vector<std::string>& arguments) {
  Result<Arguments> a = parse(arguments);
  if (!a.ok()) return fail(a.status());
  if (a->help) return std::fputs(kHelp, stdout), 0;
  const Result<Bundle> bundle = Bundle::open(a->bundle, a->open);
  if (!bundle.ok()) return fail(bundle.status());
  Words words(bundle->tokenizer());
  if (a->prompt) {
    Result<Ids> ids = words.encode(*a->prompt, a->raw);
    if (!ids.ok()) return fail(ids.status());
    a->prompt_ids = std::move(*ids);
  }
  if (Status status = add_thresholds(a->thresholds, *bundle, a->session); !status.ok()) return fail(status);
  Result<Session> session = bundle->session(a->session);
  if (!session.ok()) return fail(session.status());
  std::string text;
  const OnToken print = [&](const Token& token) {
    const std::string piece = words.known() ? words.piece(token.id) : std::to_string(token.id) + " ";
    text += piece;
    if (a->stream) std::fwrite(piece.data(), 1, piece.size(), stdout), std::fflush(stdout);
    return true;
  };
  const Result<Generation> found = session->generate(*a->prompt_ids, a->generate, print);
  if (!found.ok()) return fail(found.status());
  if (a->json) {
    const nlohmann::ordered_json said = words.known() ? nlohmann::ordered_json(text) : nlohmann::ordered_json();
    std::puts(json_of(*a->prompt_ids, *found, said, a->session.mode).c_str());
    return 0;
  }
  const Stats& s = found->stats;
  if (!a->stream) std::fwrite(text.data(), 1, text.size(), stdout);
  std::puts("");
  std::fprintf(stderr, "%lld tokens, %.1f tokens/s, mean depth %.1f, %lld drafted, %lld rejected, stopped by %s\n",
               static_cast<long long>(s.tokens), s.tokens_per_second(), s.mean_depth(),
               static_cast<long long>(s.drafted), static_cast<long long>(s.rejected), s.stop_reason.c_str());
  return 0;
}

}  // namespace
}  // namespace eecompile

int main(int count, char** words) { return eecompile::run({words + 1, words + count}); }
