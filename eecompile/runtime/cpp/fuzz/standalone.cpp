// What libFuzzer does, for compilers without it: changes seeds at random, without looking at what they reach.
//
//   fuzz-X [-runs=N] [-seed=N] [-max_total_time=SECONDS] [-artifact_prefix=FOLDER/] FILE-OR-FOLDER...
//
// The last input is left in FOLDER/last until the target has lived through all.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "documents.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

namespace fs = std::filesystem;
using eecompile::stress::Random;

std::vector<std::string> seeds_of(const std::vector<std::string>& places) {
  std::vector<std::string> seeds;
  for (const std::string& place : places) {
    if (!fs::is_directory(place)) {
      seeds.push_back(eecompile::stress::read_file(place));
      continue;
    }
    for (const auto& entry : fs::directory_iterator(place))
      if (entry.is_regular_file()) seeds.push_back(eecompile::stress::read_file(entry.path().string()));
  }
  return seeds;
}

// Overwrites, inserts, repeats or removes up to a few parts, or joins two seeds.
std::string changed(const std::vector<std::string>& seeds, Random& random) {
  std::string text = seeds[random.below(seeds.size())];
  for (std::size_t left = 1 + random.below(4); left > 0 && !text.empty(); --left) {
    const std::size_t at = random.below(text.size()), count = 1 + random.below(8);
    switch (random.below(5)) {
      case 0:
        eecompile::stress::scratch(text, random);
        break;
      case 1:
        text.erase(at, count);
        break;
      case 2:
        text.insert(at, std::string(count, static_cast<char>(random.below(256))));
        break;
      case 3:
        text.insert(random.below(text.size()), text.substr(at, count * 8));
        break;
      default:
        const std::string& other = seeds[random.below(seeds.size())];
        if (!other.empty()) text.replace(at, text.npos, other.substr(random.below(other.size())));
    }
  }
  return text;
}

void test(const std::string& text) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(text.data()), text.size());
}

}  // namespace

int main(int count, char** words) {
  std::map<std::string, std::string> options = {{"runs", "1000000000"}, {"seed", "1"}, {"max_total_time", "1000000"}};
  std::vector<std::string> places;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const std::size_t equals = word.find('=');
    if (word[0] == '-' && equals != word.npos) {
      options[word.substr(1, equals - 1)] = word.substr(equals + 1);
    } else {
      places.push_back(word);
    }
  }
  std::vector<std::string> seeds = seeds_of(places);
  seeds.emplace_back();
  for (const std::string& seed : seeds) test(seed);
  Random random(std::strtoull(options["seed"].c_str(), nullptr, 10));
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoll(options["max_total_time"].c_str()));
  const std::string last = options["artifact_prefix"] + "last";
  long long runs = 0;
  for (const long long most = std::atoll(options["runs"].c_str()); runs < most; ++runs) {
    if (std::chrono::steady_clock::now() > end) break;
    const std::string text = changed(seeds, random);
    if (!options["artifact_prefix"].empty()) eecompile::stress::write_file(last, text);
    test(text);
  }
  if (!options["artifact_prefix"].empty()) fs::remove(last);
  std::fprintf(stderr, "Done %lld runs\n", runs);
  return 0;
}
