// eecompile-run: generate from a bundle, with the flags and the JSON of the Python command.
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "arguments.h"
#include "classify.h"
#include "eecompile/text.h"
#include "many.h"

namespace eecompile {
namespace {

int fail(const Status& status) {
  std::fprintf(stderr, "error %s\n", status.text().c_str());
  return status.exit_status();
}

int run(const std::vector<std::string>& arguments) {
  Result<Arguments> a = parse(arguments);
  if (!a.ok()) return fail(a.status());
  if (a->help) return std::fputs(kHelp, stdout), 0;
  const Result<Bundle> bundle = Bundle::open(a->bundle, a->open);
  if (!bundle.ok()) return fail(bundle.status());
  if (!bundle->labels().empty()) {
    const Status status = classify(*bundle, *a);
    return status.ok() ? 0 : fail(status);
  }
  if (Status status = check_generating(*a); !status.ok()) return fail(status);
  const Result<Text> known = Text::open(*bundle);
  std::optional<StreamDecoder> decoder;
  if (known.ok()) decoder = known->stream();
  if (a->prompt) {
    if (!known.ok()) return fail(known.status());
    Result<Ids> ids = a->raw ? known->encode(*a->prompt) : known->prompt(*a->prompt);
    if (!ids.ok()) return fail(ids.status());
    a->prompt_ids = std::move(*ids);
  }
  if (Status status = add_thresholds(a->thresholds, *bundle, a->session); !status.ok()) return fail(status);
  Result<Session> session = bundle->session(a->session);
  if (!session.ok()) return fail(session.status());
  if (!a->input.empty()) {
    std::size_t failed = 0;
    if (Status status = run_file(*a, *session, known, failed); !status.ok()) return fail(status);
    if (failed > 0) std::fprintf(stderr, "error %zu prompts failed: see \"error\" in %s\n", failed, a->output.c_str());
    return failed > 0 ? 1 : 0;
  }
  std::string text;
  const OnToken print = [&](const Token& token) {
    const std::string piece = decoder ? decoder->push(token.id) : std::to_string(token.id) + " ";
    text += piece;
    if (a->stream) std::fwrite(piece.data(), 1, piece.size(), stdout), std::fflush(stdout);
    return true;
  };
  const Result<Generation> found = session->generate(*a->prompt_ids, a->generate, print);
  if (!found.ok()) return fail(found.status());
  if (a->json) {
    std::puts(result_line(*a->prompt_ids, *found, decoder ? &text : nullptr, a->session.mode).c_str());
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
