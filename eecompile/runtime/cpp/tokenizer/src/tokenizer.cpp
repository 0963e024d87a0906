#include "eecompile/tokenizer.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <limits>
#include <utility>

#include "added.h"
#include "decoder.h"
#include "field.h"
#include "model.h"
#include "normalizer.h"
#include "postprocessor.h"
#include "pretokenizer.h"
#include "utf8.h"

namespace eecompile {

using tok::Field;

struct Tokenizer::Parts {
  std::unique_ptr<const tok::Normalizer> normalizer;        // null: none
  std::unique_ptr<const tok::PreTokenizer> pre_tokenizer;   // null: none
  std::unique_ptr<const tok::Model> model;
  tok::AddedTokens added;
  tok::PostProcessor post_processor;
  tok::Decoder decoder;

  tok::Sequence sequence(std::string_view text, std::int64_t type) const;

  // Null where it is none, or one that is skipped.
  const std::string* token(std::int64_t id, bool skip_special) const {
    if (id < 0 || id > std::numeric_limits<std::int32_t>::max()) return nullptr;
    const auto small = static_cast<std::uint32_t>(id);
    const std::string* found = added.token(small);
    if (found == nullptr) found = model->vocabulary().token(small);
    return found != nullptr && skip_special && added.is_special(*found) ? nullptr : found;
  }
};

namespace {

constexpr std::size_t kMostBytes = std::size_t{1} << 29;  // of a tokenizer.json
constexpr std::size_t kFree = std::size_t{1} << 20;       // for its tree, besides four times its size

Status status(Code code, std::string what, const std::string& where) {
  return {code, std::move(what), where, "use the tokenizer.json that the checkpoint came with"};
}

void add_tokens(const tok::Model& model, const tok::Piece& piece, tok::Tokens& tokens) {
  if (piece.id < 0) return model.encode(piece.text.bytes, tokens);
  tokens.push_back({piece.id, 0, piece.text.bytes.size()});
}

// Where in the input a token of a piece comes from.
tok::Origin origin(const tok::Text& piece, const tok::Token& token) {
  const std::size_t end = std::min(token.end, piece.origins.size());
  if (token.begin >= end) return {0, 0};
  return {piece.origins[token.begin].begin, piece.origins[end - 1].end};
}

// How many characters of the text begin before each byte, and before its end.
std::vector<std::int64_t> characters_before(std::string_view text) {
  std::vector<std::int64_t> found(text.size() + 1);
  std::int64_t count = 0;
  for (std::size_t at = 0; at < text.size(); ++at) {
    found[at] = count;
    if (at + 1 == text.size() || (static_cast<unsigned char>(text[at + 1]) & 0xC0) != 0x80) ++count;
  }
  found[text.size()] = count;
  return found;
}

void shorten(tok::Sequence& text, std::size_t count) {
  Encoding& all = text.encoding;
  if (count >= all.ids.size()) return;
  all.ids.resize(count);
  all.types.resize(count);
  all.special.resize(count);
  all.second.resize(count);
  all.spans.resize(count);
  text.blanks.resize(count);
}

// Cuts texts off at `most` tokens in all: the longer one of a pair first, then both (the library's "longest first").
void cut(std::vector<tok::Sequence>& texts, std::size_t most) {
  if (texts.size() == 1) return shorten(texts[0], most);
  const std::size_t a = texts[0].encoding.ids.size(), b = texts[1].encoding.ids.size();
  if (a + b <= most) return;
  std::size_t less = std::min(a, b), more = less > most ? less : std::max(less, most - less);
  if (less + more > most) less = most / 2, more = most - less;
  shorten(texts[0], a <= b ? less : more);
  shorten(texts[1], a <= b ? more : less);
}

}  // namespace

Result<Tokenizer> Tokenizer::open(const std::string& path) {
  try {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    const std::streamoff size = file ? static_cast<std::streamoff>(file.tellg()) : -1;
    if (size < 0) return status(Code::kIntegrity, "cannot be read", path);
    if (static_cast<std::size_t>(size) > kMostBytes) return status(Code::kIntegrity, "is too large", path);
    std::string text(static_cast<std::size_t>(size), '\0');
    file.seekg(0);
    if (!file.read(text.data(), size)) return status(Code::kIntegrity, "cannot be read", path);
    return parse(text, path);
  } catch (const std::exception& e) {
    return status(Code::kInternal, std::string("cannot be opened: ") + e.what(), path);
  }
}

Result<Tokenizer> Tokenizer::parse(std::string_view text, const std::string& where) {
  json::Tree document;
  if (const std::string fault = document.read(text, {4 * text.size() + kFree, false}); !fault.empty())
    return status(Code::kIntegrity, "is no JSON that a reader accepts: " + fault, where);
  tok::Faults faults;
  const Field file(document.root(), where, faults);
  auto parts = std::make_shared<Parts>();
  if (file.has("normalizer")) parts->normalizer = tok::normalizer_from(file.at("normalizer"));
  if (file.has("pre_tokenizer")) parts->pre_tokenizer = tok::pre_tokenizer_from(file.at("pre_tokenizer"));
  parts->model = tok::model_from(file.at("model"));
  if (!faults.first.ok()) return faults.first;
  if (file.has("added_tokens")) {
    parts->added = tok::AddedTokens(file.at("added_tokens"), *parts->model, parts->normalizer.get());
  }
  if (file.has("post_processor")) parts->post_processor = tok::PostProcessor(file.at("post_processor"));
  if (file.has("decoder")) parts->decoder = tok::Decoder(file.at("decoder"));
  if (!faults.first.ok()) return faults.first;
  return Tokenizer(std::move(parts));
}

std::vector<std::int64_t> Tokenizer::encode(std::string_view text, bool add_special) const {
  tok::Pieces pieces = parts_->added.extract(tok::lossy(text), parts_->normalizer.get());
  if (parts_->pre_tokenizer) parts_->pre_tokenizer->apply(pieces);
  std::vector<std::int64_t> ids;
  tok::Tokens tokens;
  for (const tok::Piece& piece : pieces) {
    tokens.clear();
    add_tokens(*parts_->model, piece, tokens);
    for (const tok::Token& token : tokens) ids.push_back(token.id);
  }
  return add_special ? parts_->post_processor.apply(std::move(ids)) : ids;
}

// One text without what the post-processor adds.
tok::Sequence Tokenizer::Parts::sequence(std::string_view text, std::int64_t type) const {
  const std::string valid = tok::lossy(text);
  const std::vector<std::int64_t> characters = characters_before(valid);
  tok::Pieces pieces = added.extract(valid, normalizer.get(), true);
  if (pre_tokenizer) pre_tokenizer->apply(pieces);
  tok::Sequence found;
  Encoding& made = found.encoding;
  tok::Tokens tokens;
  for (const tok::Piece& piece : pieces) {
    tokens.clear();
    add_tokens(*model, piece, tokens);
    for (const tok::Token& token : tokens) {
      const std::string* const read = piece.id < 0 ? this->token(token.id, false) : &piece.text.bytes;
      found.blanks.push_back(read == nullptr ? tok::Blanks() : tok::blanks_of(*read));
      const tok::Origin from = origin(piece.text, token);
      made.ids.push_back(token.id);
      made.spans.emplace_back(characters[from.begin], characters[from.end]);
    }
  }
  made.types.assign(made.ids.size(), type);
  made.special.assign(made.ids.size(), false);
  made.second.assign(made.ids.size(), false);
  return found;
}

Result<Encoding> Tokenizer::encoding(std::string_view text, const std::optional<std::string>& pair,
                                     const std::optional<std::size_t>& most) const {
  const tok::PostProcessor& around = parts_->post_processor;
  if (pair && !around.takes_pairs())
    return Status{Code::kUnsupported, "this tokenizer has several templates, and none for a pair", "", ""};
  std::vector<tok::Sequence> texts = {parts_->sequence(text, 0)};
  if (pair) texts.push_back(parts_->sequence(*pair, 1));
  const std::size_t added = around.added(pair.has_value());
  if (most) cut(texts, *most > added ? *most - added : 0);
  return around.apply(std::move(texts));
}

std::string Tokenizer::decode(const std::vector<std::int64_t>& ids, bool skip_special) const {
  StreamDecoder stream(*this, skip_special);
  std::string text;
  for (const std::int64_t id : ids) text += stream.push(id);
  return text + stream.finish();
}

std::optional<std::int64_t> Tokenizer::id_of(const std::string& token) const {
  if (const auto added = parts_->added.find(token)) return *added;
  const std::uint32_t id = parts_->model->vocabulary().find(token);
  return id == tok::Vocabulary::kNone ? std::nullopt : std::optional<std::int64_t>(id);
}

std::int64_t Tokenizer::size() const {
  return std::max<std::int64_t>(parts_->model->vocabulary().highest(), parts_->added.highest()) + 1;
}

struct StreamDecoder::State {
  Tokenizer tokenizer;
  bool skip_special;
  std::vector<std::unique_ptr<tok::Stage>> stages;

  // `tokens` through the stages from `first` on.
  std::string run(std::vector<std::string> tokens, std::size_t first) {
    for (std::size_t i = first; i < stages.size(); ++i) {
      std::vector<std::string> out;
      for (std::string& token : tokens) stages[i]->push(std::move(token), out);
      tokens = std::move(out);
    }
    std::string text;
    for (const std::string& token : tokens) text += token;
    return text;
  }
};

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : state_(new State{tokenizer, skip_special, tokenizer.parts_->decoder.stages()}) {}
StreamDecoder::~StreamDecoder() = default;
StreamDecoder::StreamDecoder(StreamDecoder&&) noexcept = default;
StreamDecoder& StreamDecoder::operator=(StreamDecoder&&) noexcept = default;

std::string StreamDecoder::push(std::int64_t id) {
  const std::string* token = state_->tokenizer.parts_->token(id, state_->skip_special);
  return token == nullptr ? "" : state_->run({*token}, 0);
}

std::string StreamDecoder::finish() {
  std::string text;
  for (std::size_t i = 0; i < state_->stages.size(); ++i) {
    std::vector<std::string> out;
    state_->stages[i]->finish(out);
    text += state_->run(std::move(out), i + 1);
  }
  return text;
}

}  // namespace eecompile
