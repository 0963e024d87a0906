// A chat template as the table that a build makes of it (runtime/chat.py): what is written between two messages, by
// their roles.
//
// Thread safety: a value that does not change. Cost: the texts.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "eecompile/text.h"

namespace eecompile {

class ChatTable {
 public:
  // The table in `data`, the content of the file `where`.
  static Result<ChatTable> read(std::string_view data, const std::string& where);

  // The text of a conversation, ready for the assistant's turn.
  Result<std::string> render(const std::vector<Message>& messages) const;

 private:
  // The table's entry, or null where no message of `after` follows one of `before`.
  const std::string* between(const std::string& before, const std::string& after) const;

  std::map<std::string, std::map<std::string, std::string>> between_;
  std::vector<std::string> stripped_, special_;
  std::string refused_;  // why the template is no table; empty where it is
};

}  // namespace eecompile
