#include "words.h"

#include "eecompile/text.h"

namespace eecompile {

struct Words::State {
  Text text;
  StreamDecoder decoder;
};

Words::Words(const std::string& path) {
  Result<Text> opened = Text::open(path);
  why_ = opened.status();
  if (!opened.ok()) return;
  StreamDecoder decoder = opened->stream();
  state_.reset(new State{std::move(opened).value(), std::move(decoder)});
}

Words::~Words() = default;

std::string Words::piece(std::int64_t id) { return state_->decoder.push(id); }

std::string Words::text(const Ids& ids) const {
  std::string found;
  StreamDecoder decoder = state_->text.stream();
  for (const std::int64_t id : ids) found += decoder.push(id);
  return found;
}

Result<Ids> Words::encode(const std::string& text, bool raw) const {
  if (!known()) return why_;
  if (raw) return state_->text.encode(text);
  return state_->text.prompt(text);
}

}  // namespace eecompile
