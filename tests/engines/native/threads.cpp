// threads BUNDLE COUNT [PLUGIN]: that many threads, each with a session of one bundle and two requests, tell their
// tokens.
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "eecompile/bundle.h"

int main(int count, char** words) {
  using namespace eecompile;
  OpenOptions options;
  options.backend = "tensorrt";
  if (count > 3) options.plugin = words[3];
  const Result<Bundle> bundle = Bundle::open(words[1], options);
  if (!bundle.ok()) return std::fprintf(stderr, "%s\n", bundle.status().text().c_str()), 1;
  std::vector<std::string> told(static_cast<std::size_t>(std::atoi(words[2])));
  std::vector<std::thread> threads;
  for (std::string& own : told)
    threads.emplace_back([&] {
      Result<Session> session = bundle->session();
      GenerateOptions request;
      request.max_new_tokens = 8;
      request.stop = Ids{};
      for (int i = 0; i < 2; ++i) {
        const Result<Generation> made = session->generate({5, 6, 7}, request);
        if (!made.ok()) own += made.status().text();
        if (made.ok())
          for (const std::int64_t id : made->ids) own += std::to_string(id) + " ";
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::string& own : told) std::printf("%s\n", own.c_str());
}
