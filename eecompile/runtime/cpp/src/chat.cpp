#include "chat.h"

#include <algorithm>
#include <array>

#include "eecompile/contract.h"
#include "json.h"

namespace eecompile {
namespace {

constexpr std::size_t kLongestText = 100'000;
constexpr char kMend[] = "give the prompt as plain text (--raw), or use the Python runtime";

// White space, as Python's str.strip has it.
constexpr std::array<std::string_view, 29> kSpaces = {
    " ",        "\t",       "\n",       "\v",       "\f",       "\r",       "\x1c",     "\x1d",
    "\x1e",     "\x1f",     "\u0085",   "\u00a0",   "\u1680",   "\u2000",   "\u2001",   "\u2002",
    "\u2003",   "\u2004",   "\u2005",   "\u2006",   "\u2007",   "\u2008",   "\u2009",   "\u200a",
    "\u2028",   "\u2029",   "\u202f",   "\u205f",   "\u3000"};

std::string_view without_space(std::string_view text) {
  const auto cut = [&](bool end) {
    for (const std::string_view space : kSpaces) {
      if (text.size() < space.size()) continue;
      if (text.substr(end ? text.size() - space.size() : 0, space.size()) != space) continue;
      text = end ? text.substr(0, text.size() - space.size()) : text.substr(space.size());
      return true;
    }
    return false;
  };
  while (cut(false)) continue;
  while (cut(true)) continue;
  return text;
}

bool has(const std::vector<std::string>& list, const std::string& one) {
  return std::find(list.begin(), list.end(), one) != list.end();
}

bool is_role(const std::string& name) {
  return std::find(contract::kChatRoles.begin(), contract::kChatRoles.end(), name) != contract::kChatRoles.end();
}

std::vector<std::string> texts(Fields& fields, const char* key, std::size_t longest, std::size_t letters) {
  std::vector<std::string> found;
  for (const Json& one : fields.list(key, longest)) {
    const std::string text = one.is_string() ? one.get<std::string>() : "";
    if (text.empty() || text.size() > 4 * letters) fields.fail(key, "holds what is no text");
    found.push_back(text);
  }
  return found;
}

}  // namespace

Result<ChatTable> ChatTable::read(std::string_view data, const std::string& where) {
  Result<Document> document = parse_object(data, where);
  if (!document.ok()) return document.status();
  ChatTable table;
  std::string fault;
  Fields fields(*document, "", fault);
  const std::string start(contract::kChatStart), end(contract::kChatEnd);
  for (const auto& [before, row] : fields.object("between").items()) {
    if (before != start && !is_role(before)) fields.fail("between", "has a role that is none");
    Fields entries(row, "between", fault);
    if (!row.is_object()) continue;
    for (const auto& [after, text] : row.items()) {
      if (after != end && !is_role(after)) fields.fail("between", "has a role that is none");
      table.between_[before][after] = entries.text(after.c_str(), kLongestText);
    }
  }
  table.stripped_ = texts(fields, "stripped", contract::kChatRoles.size(), 200);
  table.special_ = texts(fields, "special", static_cast<std::size_t>(contract::kMaxChatSpecial),
                         static_cast<std::size_t>(contract::kMaxChatText));
  table.refused_ = fields.text("refused", kLongestText);
  fields.finish();
  if (!fault.empty()) return damaged(fault, where);
  return table;
}

const std::string* ChatTable::between(const std::string& before, const std::string& after) const {
  const auto row = between_.find(before);
  if (row == between_.end()) return nullptr;
  const auto entry = row->second.find(after);
  return entry == row->second.end() ? nullptr : &entry->second;
}

Result<std::string> ChatTable::render(const std::vector<Message>& messages) const {
  if (!refused_.empty())
    return Status{Code::kUnsupported, "this runtime does not do the model's chat template: " + refused_, "", kMend};
  std::string text, before(contract::kChatStart);
  for (const Message& message : messages) {
    if (!is_role(message.role))
      return Status{Code::kUsage, "there is no role " + message.role, "", "roles: system, user, assistant"};
    for (const std::string& special : special_)
      if (message.content.find(special) != std::string::npos)
        return Status{Code::kUnsupported, "the chat template does something of its own with " + special,
                      "a message of the " + message.role, kMend};
    const std::string* const piece = between(before, message.role);
    if (piece == nullptr)
      return Status{Code::kUsage,
                    before == contract::kChatStart
                        ? "the chat template takes no conversation that the " + message.role + " begins"
                        : "the chat template takes no message of the " + message.role + " after one of the " + before,
                    "", ""};
    text += *piece;
    text += has(stripped_, message.role) ? without_space(message.content) : std::string_view(message.content);
    before = message.role;
  }
  const std::string* const piece = between(before, std::string(contract::kChatEnd));
  if (piece == nullptr)
    return Status{Code::kUsage, "the chat template has no turn for the assistant here", "",
                  "end the conversation with a message of the user"};
  return text + *piece;
}

}  // namespace eecompile
