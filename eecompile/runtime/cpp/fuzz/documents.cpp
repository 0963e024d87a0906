#include "documents.h"

#include <array>
#include <fstream>
#include <iterator>
#include <utility>
#include <vector>

#include "json.h"

namespace eecompile::stress {
namespace {

using Place = std::pair<Json*, Json::iterator>;  // what holds a member, and where

void collect(Json& value, std::vector<Place>& found) {
  for (auto at = value.begin(); at != value.end(); ++at) {
    found.emplace_back(&value, at);
    if (at->is_structured()) collect(*at, found);
  }
}

Json odd(Random& random) {
  static const std::array<const char*, 30> kOdd = {
      "null", "true", "false", "0", "-1", "1", "2", "16", "1048576", "2147483647", "4294967296", "9223372036854775807",
      "18446744073709551615", "0.5", "-1.5", "1e300", "\"\"", "\"x\"", "\"..\"", "\"/\"", "\"T\"", "\"N\"",
      "\"segments/head.onnx\"", "\"learned\"", "\"never\"", "\"fp16\"", "[]", "[[]]", "{}", "{\"a\":1}"};
  const std::size_t which = random.below(kOdd.size() + 2);
  if (which < kOdd.size()) return Json::parse(kOdd[which]);
  if (which == kOdd.size()) return Json(std::vector<int>(5000, 1));
  return Json(std::string(300, 'e'));
}

void nudge(Json& value, Random& random) {
  static constexpr std::array<std::int64_t, 4> kSteps = {-1, 1, 7, 64};
  const std::int64_t now = value.get<std::int64_t>() & 0xFFFFFFFFFF;
  value = random.below(4) == 0 ? now * 2 : std::max<std::int64_t>(0, now + kSteps[random.below(kSteps.size())]);
}

}  // namespace

std::uint64_t Random::next() {
  std::uint64_t x = state_ += 0x9E3779B97F4A7C15;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
  x = (x ^ x >> 27) * 0x94D049BB133111EB;
  return x ^ x >> 31;
}

void mutate(Json& document, Random& random) {
  for (std::size_t round = 1 + random.below(3); round > 0; --round) {
    std::vector<Place> found;
    collect(document, found);
    if (found.empty()) return;
    const auto [container, at] = found[random.below(found.size())];
    const std::size_t kind = random.below(5);
    if (kind == 0) {
      container->erase(at);
    } else if (kind == 1 && container->is_array()) {
      const Json again = *at;
      container->insert(at, again);
    } else if (kind == 2) {
      const Json other = *found[random.below(found.size())].second;
      *at = other;
    } else if (kind == 3 && at->is_number_integer()) {
      nudge(*at, random);
    } else {
      *at = odd(random);
    }
  }
}

void scratch(std::string& text, Random& random) {
  for (std::size_t left = 1 + random.below(4); left > 0 && !text.empty(); --left)
    text[random.below(text.size())] = static_cast<char>(random.below(256));
}

std::string sealed(Json document) {
  if (document.is_object()) document["digest"] = std::string(64, '0');
  return sealed_text(document.dump(1, ' ', false, Json::error_handler_t::replace));
}

std::string sealed_text(std::string text) {
  static constexpr std::string_view kOwn = "\n \"digest\": \"";  // the document's own members are indented by one
  const std::size_t at = text.find(kOwn);
  if (at != text.npos && text.size() - at >= kOwn.size() + 64)
    text.replace(at + kOwn.size(), 64, document_digest(text));
  return text;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void write_file(const std::string& path, std::string_view text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc).write(text.data(), static_cast<std::streamsize>(text.size()));
}

}  // namespace eecompile::stress
