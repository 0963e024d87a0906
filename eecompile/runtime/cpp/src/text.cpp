#include "eecompile/text.h"

#include <unistd.h>

#include <optional>

#include "chat.h"
#include "eecompile/contract.h"
#include "files.h"
#include "json.h"

namespace eecompile {
namespace {

constexpr char kPlain[] = "give the prompt as plain text (--raw), or as token ids";

bool is_there(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

// Whether the tokenizer in `folder` came with a chat template.
bool has_template(const std::string& folder) {
  if (is_there(folder + "chat_template.jinja")) return true;
  const Result<std::string> data = read_regular(folder + "tokenizer_config.json", contract::kMaxManifestBytes);
  if (!data.ok()) return false;
  json::Tree config;
  if (!config.read(*data, {8 * data->size(), false}).empty()) return false;
  const Json found = config.root().find("chat_template");
  return !found.is_null() && found != "";
}

}  // namespace

struct Text::State {
  Tokenizer tokenizer;
  std::optional<ChatTable> table;
  bool has_template;
};

Text::Text(std::shared_ptr<const State> state) : state_(std::move(state)) {}

Result<Text> Text::open(const Bundle& bundle) { return open(bundle.tokenizer()); }

Result<Text> Text::open(const std::string& path) {
  if (path.empty())
    return Status{Code::kUsage, "this bundle has no tokenizer", "", "give token ids: --prompt-ids 1,2,3"};
  Result<Tokenizer> tokenizer = Tokenizer::open(path);
  if (!tokenizer.ok()) return tokenizer.status();
  const std::string folder = path.substr(0, path.rfind('/') + 1);
  const std::string chat = folder + std::string(contract::kChat.substr(contract::kChat.rfind('/') + 1));
  std::optional<ChatTable> table;
  if (is_there(chat)) {
    const Result<std::string> data = read_regular(chat, contract::kMaxManifestBytes);
    if (!data.ok()) return data.status();
    Result<ChatTable> read = ChatTable::read(*data, chat);
    if (!read.ok()) return read.status();
    table = std::move(read).value();
  }
  const bool has = table || has_template(folder);
  return Text(std::make_shared<const State>(State{std::move(tokenizer).value(), std::move(table), has}));
}

Ids Text::encode(std::string_view text) const { return state_->tokenizer.encode(text, true); }

Result<Encoding> Text::encoding(std::string_view text, const std::optional<std::string>& pair,
                                const std::optional<std::size_t>& most) const {
  return state_->tokenizer.encoding(text, pair, most);
}

bool Text::has_chat() const { return state_->has_template; }

Result<Ids> Text::chat(const std::vector<Message>& messages) const {
  if (!state_->has_template) return Status{Code::kUsage, "this model has no chat template", "", kPlain};
  if (!state_->table)
    return Status{Code::kUnsupported, "this bundle has its chat template in Jinja alone", "",
                  std::string("build the bundle again, or ") + kPlain};
  const Result<std::string> text = state_->table->render(messages);
  if (!text.ok()) return text.status();
  return state_->tokenizer.encode(*text, false);
}

Result<Ids> Text::prompt(const std::string& text) const {
  if (has_chat()) return chat({{"user", text}});
  return encode(text);
}

std::string Text::decode(const Ids& ids) const { return state_->tokenizer.decode(ids, true); }

StreamDecoder Text::stream() const { return StreamDecoder(state_->tokenizer); }

}  // namespace eecompile
