// Text in and out of a bundle: its tokenizer, and its chat template.
//
//   auto text = eecompile::Text::open(*bundle);
//   if (!text.ok()) return fail(text.status());
//   auto stream = text->stream();
//   session->generate(*text->chat({{"user", "Name a prime."}}), {},
//                     [&](const eecompile::Token& t) { return show(stream.push(t.id)); });
//
// Thread safety: a Text never changes and copies share it: any number of threads may use one. A StreamDecoder belongs to
// one thread at a time. Cost: the tokenizer's (tokenizer.h). No function throws but for std::bad_alloc.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "eecompile/bundle.h"
#include "eecompile/tokenizer.h"

namespace eecompile {

// What somebody says in a conversation. role: "system", "user" or "assistant".
struct Message {
  std::string role, content;
};

class Text {
 public:
  // kUsage: the bundle has no tokenizer; kUnsupported: it has one that this library does not read.
  static Result<Text> open(const Bundle& bundle);

  // The same of the path of a tokenizer.json, with the files beside it; of none where it is empty.
  static Result<Text> open(const std::string& tokenizer);

  // The ids of `text` as it is, with the tokenizer's own special tokens around them.
  Ids encode(std::string_view text) const;

  // The same with all that classifiers read, of a text or of a pair; as Tokenizer::encoding.
  Result<Encoding> encoding(std::string_view text, const std::optional<std::string>& pair = {},
                            const std::optional<std::size_t>& most = {}) const;

  // The ids of a conversation in the model's chat template, ready for the assistant's turn. kUsage: there is no
  // template, or it takes no such conversation; kUnsupported: what it does is in no table (docs/BUNDLE_FORMAT.md), or
  // it does something of its own with one of these messages.
  Result<Ids> chat(const std::vector<Message>& messages) const;

  bool has_chat() const;  // whether the model has a chat template, be it one that `chat` can use or not

  // What `eecompile run` makes of a prompt: a user's message where the model has a chat template, else the text itself.
  Result<Ids> prompt(const std::string& text) const;

  std::string decode(const Ids& ids) const;  // without special tokens
  StreamDecoder stream() const;              // the text that each next id completes

 private:
  struct State;
  explicit Text(std::shared_ptr<const State> state);
  std::shared_ptr<const State> state_;
};

}  // namespace eecompile
