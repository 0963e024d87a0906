// Texts as the command line and files give them, encoded for a classifier (texts.py, prompts.py).
#pragma once

#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "eecompile/bundle.h"

namespace eecompile {

// A text, a pair of them, or token ids.
struct TextInput {
  std::string text;
  std::optional<std::string> pair;
  std::optional<Ids> ids;
};

// A text that is encoded, and what its tokens stand for. spans, second: none of token ids.
struct ReadText {
  EncodedText encoded;
  TextInput given;
  std::vector<std::pair<std::int64_t, std::int64_t>> spans;  // characters
  std::vector<bool> second;

  // What token number `place` stands for in the text; its id where there is no text.
  std::string piece(std::size_t place) const;
};

// Encodes texts for one bundle.
class TextEncoder {
 public:
  // truncate: cut texts off at the context, instead of leaving them to be refused.
  TextEncoder(const Bundle& bundle, bool truncate);
  ~TextEncoder();

  Result<ReadText> operator()(TextInput given) const;

 private:
  struct State;
  std::size_t context_;
  bool truncate_;
  Status why_;  // there is no tokenizer
  std::unique_ptr<const State> state_;
};

// The texts of a .txt file, one a line, or of a .jsonl file of {"prompt"}, {"text"}, {"prompt_ids"} or {"source"}, with
// a {"pair"} beside a text. Blank lines are skipped.
class TextFile {
 public:
  explicit TextFile(std::string path);

  // The next `most` texts; none at the end. kUsage with the line at fault, or where the file has none at all.
  Result<std::vector<TextInput>> next(std::size_t most);

 private:
  std::string path_;
  std::ifstream lines_;
  std::size_t line_ = 0, found_ = 0;
};

}  // namespace eecompile
