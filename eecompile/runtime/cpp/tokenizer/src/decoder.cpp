#include "decoder.h"

#include <functional>
#include <utility>

#include "stages.h"

namespace eecompile::tok {

// `make(fused)`: a stage for tokens, or for the parts of one token; null where nothing is to be done.
struct Decoder::Step {
  std::function<std::unique_ptr<Stage>(bool fused)> make;
  bool fuses;
};

namespace {

// What has to see a token as a whole.
template <typename Make>
auto waiting(Make make) {
  return [make = std::move(make)](bool fused) { return fused ? whole_stage(make()) : make(); };
}

std::unique_ptr<const Decoder::Step> step(std::function<std::unique_ptr<Stage>(bool)> make, bool fuses = false) {
  return std::make_unique<const Decoder::Step>(Decoder::Step{std::move(make), fuses});
}

std::unique_ptr<const Decoder::Step> strip_step(const Field& field) {
  const char32_t content = field.at("content").character();
  const std::size_t start = field.at("start").number(), stop = field.at("stop").number();
  return step([=](bool fused) {
    if (fused && stop == 0) return strip_start_stage(content, start);
    return fused ? whole_stage(strip_stage(content, start, stop)) : strip_stage(content, start, stop);
  });
}

}  // namespace

Decoder::Decoder(const Field& field) : spaced_(false) { add(field); }
Decoder::Decoder() = default;
Decoder::~Decoder() = default;
Decoder::Decoder(Decoder&&) noexcept = default;
Decoder& Decoder::operator=(Decoder&&) noexcept = default;

void Decoder::add(const Field& field) {
  const std::string type = field.at("type").text();
  if (type == "ByteLevel") {
    steps_.push_back(step(waiting(byte_level_stage), true));
  } else if (type == "Fuse") {
    steps_.push_back(step([](bool) { return std::unique_ptr<Stage>(); }, true));
  } else if (type == "ByteFallback") {
    steps_.push_back(step(waiting(byte_fallback_stage)));
  } else if (type == "WordPiece") {
    const std::string prefix = field.at("prefix").text();
    const bool cleanup = field.at("cleanup").flag();
    steps_.push_back(step(waiting([=] { return word_piece_stage(prefix, cleanup); })));
  } else if (type == "Metaspace") {
    steps_.push_back(step([meta = metaspace_from(field)](bool fused) { return metaspace_stage(meta, fused); }));
  } else if (type == "Replace") {
    const Pattern pattern = Pattern::from(field.at("pattern"));
    const std::string content = field.at("content").text();
    steps_.push_back(step(waiting([=] { return replace_stage(pattern, content); })));
  } else if (type == "Strip") {
    steps_.push_back(strip_step(field));
  } else if (type == "Sequence") {
    field.at("decoders").each([this](const Field& one) { add(one); });
  } else {
    field.unsupported("the decoder " + type + " is not supported");
  }
}

std::vector<std::unique_ptr<Stage>> Decoder::stages() const {
  std::vector<std::unique_ptr<Stage>> made;
  if (spaced_) made.push_back(spaced_stage());
  bool fused = false;
  for (const auto& one : steps_) {
    if (std::unique_ptr<Stage> stage = one->make(fused)) made.push_back(std::move(stage));
    fused = fused || one->fuses;
  }
  return made;
}

}  // namespace eecompile::tok
