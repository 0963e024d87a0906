// ONNX Runtime GenAI's own loop through its C interface, without Python: what cpp_bench.py measures the C++ runtime beside.
//
//     genai_loop LIBRARY FOLDER PROMPTS TOKENS ROUNDS THREADS END_ID
//
// PROMPTS has a prompt's ids a line, with spaces between. Prints a JSON object: tokens a second of each round and prompt,
// from the first new token to the last, and the ids of the last round. An unmeasured round comes first.
#include <dlfcn.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Ids = std::vector<std::int32_t>;

void* library = nullptr;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "error %s\n", what.c_str());
  std::exit(1);
}

// Calls a function of the library by its name; one that returns a result must return none.
template <typename Out, typename... Args>
Out call(const char* name, Args... args) {
  void* found = dlsym(library, name);
  if (found == nullptr) fail(std::string("the library has no ") + name);
  return reinterpret_cast<Out (*)(Args...)>(found)(args...);
}

template <typename... Args>
void must(const char* name, Args... args) {
  if (void* result = call<void*>(name, args...)) fail(call<const char*>("OgaResultGetError", result));
}

std::vector<Ids> read_prompts(const char* path) {
  std::vector<Ids> prompts;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    Ids ids;
    for (std::int32_t id; words >> id;) ids.push_back(id);
    if (!ids.empty()) prompts.push_back(std::move(ids));
  }
  if (prompts.empty()) fail(std::string(path) + " has no prompt");
  return prompts;
}

struct Round {
  double tokens_per_second;
  Ids ids;
};

Round generate(void* model, const Ids& prompt, std::size_t tokens, std::int32_t end) {
  void *parameters = nullptr, *generator = nullptr;
  const std::size_t all = prompt.size() + tokens;
  must("OgaCreateGeneratorParams", model, &parameters);
  must("OgaGeneratorParamsSetSearchNumber", parameters, "max_length", static_cast<double>(all));
  must("OgaGeneratorParamsSetSearchBool", parameters, "do_sample", false);
  must("OgaCreateGenerator", model, parameters, &generator);
  must("OgaGenerator_AppendTokens", generator, prompt.data(), prompt.size());
  const auto count = [&] { return call<std::size_t>("OgaGenerator_GetSequenceCount", generator, std::size_t{0}); };
  Clock::time_point began;
  for (std::size_t made = 0; count() < all; ++made) {
    must("OgaGenerator_GenerateNextToken", generator);
    if (made == 0) began = Clock::now();
    if (call<bool>("OgaGenerator_IsDone", generator) && count() < all)  // it keeps an end to itself: handed back, it goes on
      must("OgaGenerator_AppendTokens", generator, static_cast<const std::int32_t*>(&end), std::size_t{1});
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - began).count();
  const auto* ids = call<const std::int32_t*>("OgaGenerator_GetSequenceData", generator, std::size_t{0});
  Round round{static_cast<double>(tokens - 1) / seconds, Ids(ids + prompt.size(), ids + all)};
  call<void>("OgaDestroyGenerator", generator);
  call<void>("OgaDestroyGeneratorParams", parameters);
  return round;
}

template <typename List, typename Write>
void print_list(const List& list, const Write& write) {
  std::putchar('[');
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (i > 0) std::putchar(',');
    write(list[i]);
  }
  std::putchar(']');
}

}  // namespace

int main(int count, char** words) {
  if (count != 8) fail("genai_loop LIBRARY FOLDER PROMPTS TOKENS ROUNDS THREADS END_ID");
  library = dlopen(words[1], RTLD_NOW);
  if (library == nullptr) fail(dlerror());
  const std::vector<Ids> prompts = read_prompts(words[3]);
  const std::size_t tokens = std::strtoull(words[4], nullptr, 10), rounds = std::strtoull(words[5], nullptr, 10);
  const auto end = static_cast<std::int32_t>(std::strtol(words[7], nullptr, 10));
  const std::string threads = R"({"model":{"decoder":{"session_options":{"intra_op_num_threads":)";
  void *config = nullptr, *model = nullptr;
  must("OgaCreateConfig", static_cast<const char*>(words[2]), &config);
  must("OgaConfigOverlay", config, (threads + words[6] + "}}}}").c_str());
  must("OgaCreateModelFromConfig", static_cast<const void*>(config), &model);
  std::vector<std::vector<double>> speeds(rounds);
  std::vector<Ids> last;
  for (std::size_t round = 0; round <= rounds; ++round) {
    last.clear();
    for (const Ids& prompt : prompts) {
      const Round done = generate(model, prompt, tokens, end);
      if (round > 0) speeds[round - 1].push_back(done.tokens_per_second);
      last.push_back(done.ids);
    }
  }
  std::printf("{\"tokens_per_second\":");
  print_list(speeds, [](const auto& one) { print_list(one, [](double v) { std::printf("%.3f", v); }); });
  std::printf(",\"token_ids\":");
  print_list(last, [](const Ids& one) { print_list(one, [](std::int32_t id) { std::printf("%d", id); }); });
  std::puts("}");
  call<void>("OgaDestroyModel", model);
  call<void>("OgaDestroyConfig", config);
  call<void>("OgaShutdown");
}
