#include "texts.h"

#include <algorithm>

#include <nlohmann/json.hpp>

#include "eecompile/tokenizer.h"

namespace eecompile {

struct TextEncoder::State {
  Tokenizer tokenizer;
};

namespace {

using Document = nlohmann::json;

constexpr const char* kTextFormat =
    "write {\"text\": \"...\"} or {\"prompt_ids\": [1, 2, 3]} on each line of a .jsonl file";

// Characters [begin, end) of UTF-8.
std::string characters(const std::string& text, std::int64_t begin, std::int64_t end) {
  std::string found;
  std::int64_t at = -1;
  for (const char byte : text) {
    if ((static_cast<unsigned char>(byte) & 0xC0) != 0x80) ++at;
    if (begin <= at && at < end) found += byte;
  }
  return found;
}

bool is_text_or_nothing(const Document& record, const char* key) {
  return !record.contains(key) || record[key].is_null() || record[key].is_string();
}

std::optional<Ids> ids_of(const Document& value) {
  const auto is_id = [](const Document& id) { return id.is_number_integer(); };
  if (!value.is_array() || !std::all_of(value.begin(), value.end(), is_id)) return std::nullopt;
  return value.get<Ids>();
}

// A line of a .jsonl file; nothing where it is none of the known forms.
std::optional<TextInput> record_of(const std::string& line) {
  const Document record = Document::parse(line, nullptr, false);
  if (!record.is_object()) return std::nullopt;
  for (const char* key : {"prompt", "text", "pair"})
    if (!is_text_or_nothing(record, key)) return std::nullopt;
  TextInput found;
  if (record.contains("prompt_ids") && !record["prompt_ids"].is_null()) {
    found.ids = ids_of(record["prompt_ids"]);
    return found.ids ? std::optional(found) : std::nullopt;
  }
  for (const char* key : {"prompt", "text", "source"}) {
    if (!record.contains(key) || !record[key].is_string()) continue;
    found.text = record[key].get<std::string>();
    if (record.contains("pair") && record["pair"].is_string()) found.pair = record["pair"].get<std::string>();
    return found;
  }
  return std::nullopt;
}

bool ends_in(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

std::string ReadText::piece(std::size_t place) const {
  if (spans.empty()) return std::to_string(encoded.ids[place]);
  const auto& [begin, end] = spans[place];
  return characters(second[place] ? *given.pair : given.text, begin, end);
}

TextEncoder::TextEncoder(const Bundle& bundle, bool truncate)
    : context_(static_cast<std::size_t>(bundle.model().context)),
      truncate_(truncate),
      why_{Code::kUsage, "this bundle has no tokenizer", "", "give token ids: --prompt-ids 1,2,3"} {
  const std::string path = bundle.tokenizer();
  if (path.empty()) return;
  Result<Tokenizer> opened = Tokenizer::open(path);
  if (opened.ok()) state_.reset(new State{std::move(opened).value()});
  if (!opened.ok()) why_ = opened.status();
}

TextEncoder::~TextEncoder() = default;

Result<ReadText> TextEncoder::operator()(TextInput given) const {
  ReadText read;
  read.given = std::move(given);
  if (read.given.ids) {
    read.encoded.ids = *read.given.ids;
    if (truncate_) read.encoded.ids.resize(std::min(context_, read.encoded.ids.size()));
    return read;
  }
  if (!state_) return why_;
  const std::optional<std::size_t> most = truncate_ ? std::optional(context_) : std::nullopt;
  Result<Encoding> made = state_->tokenizer.encoding(read.given.text, read.given.pair, most);
  if (!made.ok()) return made.status();
  read.encoded = {std::move(made->ids), std::move(made->types), std::move(made->special)};
  read.spans = std::move(made->spans);
  read.second = std::move(made->second);
  return read;
}

TextFile::TextFile(std::string path) : path_(std::move(path)), lines_(path_, std::ios::binary) {}

Result<std::vector<TextInput>> TextFile::next(std::size_t most) {
  if (!lines_.is_open()) return Status{Code::kUsage, "the prompts cannot be read", path_, ""};
  std::vector<TextInput> texts;
  for (std::string line; texts.size() < most && std::getline(lines_, line);) {
    ++line_;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.find_first_not_of(" \t\r\n\f\v") == line.npos) continue;
    const std::optional<TextInput> found = ends_in(path_, ".jsonl") ? record_of(line) : TextInput{line, {}, {}};
    if (!found) return Status{Code::kUsage, "not a prompt", path_ + ":" + std::to_string(line_), kTextFormat};
    texts.push_back(*found);
  }
  found_ += texts.size();
  if (found_ == 0) return Status{Code::kUsage, "there is no prompt to run", path_, ""};
  return texts;
}

}  // namespace eecompile
