// Text for eecompile-run: the bundle's tokenizer, where there is one that this build reads.
#pragma once

#include <memory>
#include <string>

#include "eecompile/status.h"
#include "eecompile/values.h"

namespace eecompile {

class Words {
 public:
  // path: of the tokenizer.json; empty: the bundle has none.
  explicit Words(const std::string& path);
  ~Words();

  bool known() const { return state_ != nullptr; }
  std::string piece(std::int64_t id);  // the text that the next id completes; "" inside a character
  std::string text(const Ids& ids) const;  // of all of a request's ids

  // The ids of a text: a user's message in the model's chat template, if it has one. raw: the text as it is.
  Result<Ids> encode(const std::string& text, bool raw) const;

 private:
  struct State;
  Status why_;  // there is none
  std::unique_ptr<State> state_;
};

}  // namespace eecompile
