// Streams a model's answer to a question: cpp_app BUNDLE "a question".
#include <eecompile/text.h>

#include <cstdio>
#include <cstdlib>

// What a call gave; where it gave none, the program says why and ends.
template <typename T>
T checked(eecompile::Result<T> result) {
  if (result.ok()) return std::move(result).value();
  std::fprintf(stderr, "%s\n", result.status().text().c_str());
  std::exit(result.status().exit_status());
}

int main(int count, char** words) {
  if (count != 3) return std::fputs("usage: cpp_app BUNDLE QUESTION\n", stderr), 2;
  const auto bundle = checked(eecompile::Bundle::open(words[1]));
  const auto text = checked(eecompile::Text::open(bundle));
  const auto prompt = checked(text.chat({{"user", words[2]}}));
  auto session = checked(bundle.session({"exact"}));
  auto stream = text.stream();
  const auto show = [&](const eecompile::Token& token) {
    return std::fputs(stream.push(token.id).c_str(), stdout) >= 0 && std::fflush(stdout) == 0;
  };
  const auto answer = checked(session.generate(prompt, {}, show));
  std::printf("%s\n%.1f tokens/s\n", stream.finish().c_str(), answer.stats.tokens_per_second());
}
