// Asks a bundle's model something, and shows the answer as it comes:
//
//   eecompile-example BUNDLE "a question"
#include <cstdio>

#include "eecompile/text.h"

int main(int count, char** words) {
  const auto fail = [](const eecompile::Status& status) {
    std::fprintf(stderr, "error %s\n", status.text().c_str());
    return status.exit_status();
  };
  if (count != 3) return std::fputs("usage: eecompile-example BUNDLE PROMPT\n", stderr), 2;
  const auto bundle = eecompile::Bundle::open(words[1]);
  if (!bundle.ok()) return fail(bundle.status());
  const auto text = eecompile::Text::open(*bundle);
  if (!text.ok()) return fail(text.status());
  const auto prompt = text->prompt(words[2]);
  if (!prompt.ok()) return fail(prompt.status());
  auto session = bundle->session({"exact"});
  if (!session.ok()) return fail(session.status());
  auto stream = text->stream();
  const auto show = [&](const eecompile::Token& token) {
    return std::fputs(stream.push(token.id).c_str(), stdout) >= 0 && std::fflush(stdout) == 0;
  };
  const auto answer = session->generate(*prompt, {}, show);
  if (!answer.ok()) return fail(answer.status());
  std::printf("%s\n", stream.finish().c_str());
  return 0;
}
