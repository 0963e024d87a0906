#include "added.h"

#include <algorithm>
#include <utility>

#include "unicode.h"

namespace eecompile::tok {

namespace {

struct Found {
  std::size_t begin, end;
  std::uint32_t id;
};

// The leftmost longest token from byte `at` on; its id is kNone where there is none.
Found next_match(std::string_view text, std::size_t at, const Vocabulary& wanted) {
  for (; at < text.size(); ++at) {
    Found found{at, at, Vocabulary::kNone};
    std::uint32_t node = wanted.root();
    for (std::size_t end = at; end < text.size();) {
      node = wanted.step(node, text[end++]);
      if (node == Vocabulary::kNone) break;
      if (wanted.id_at(node) != Vocabulary::kNone) found = {at, end, wanted.id_at(node)};
    }
    if (found.id != Vocabulary::kNone) return found;
  }
  return {at, at, Vocabulary::kNone};
}

bool is_word_alone(std::string_view text, const Found& found) {
  const bool before = found.begin > 0 && is(decode_before(text, found.begin).point, kRegexWord);
  const bool behind = found.end < text.size() && is(decode(text, found.end).point, kRegexWord);
  return !before && !behind;
}

std::size_t space_before(std::string_view text, std::size_t at, std::size_t least) {
  while (at > least && is(decode_before(text, at).point, kSpace)) at -= decode_before(text, at).size;
  return at;
}

std::size_t space_behind(std::string_view text, std::size_t at) {
  while (at < text.size() && is(decode(text, at).point, kSpace)) at += decode(text, at).size;
  return at;
}

std::string normalized_text(const std::string& content, const Normalizer* normalizer) {
  Text text = Text::whole(content);
  if (normalizer != nullptr) normalizer->apply(text);
  return text.bytes;
}

}  // namespace

AddedTokens::AddedTokens(const Field& field, const Model& model, const Normalizer* normalizer) {
  auto next = static_cast<std::uint32_t>(model.vocabulary().size());
  field.each([&](const Field& one) { add(one, model, normalizer, next); });
  std::vector<Vocabulary::Entry> plain, normalized;
  std::set<std::string> seen[2];
  for (const auto& [id, token] : tokens_) {
    if (token.matched.empty()) continue;
    const bool fresh = seen[token.normalized ? 1 : 0].insert(token.matched).second;
    if (!fresh) field.malformed("two tokens read " + token.matched);
    (token.normalized ? normalized : plain).emplace_back(token.matched, id);
  }
  plain_ = Vocabulary(std::move(plain));
  normalized_ = Vocabulary(std::move(normalized));
}

void AddedTokens::add(const Field& field, const Model& model, const Normalizer* normalizer, std::uint32_t& next) {
  AddedToken token{field.at("content").text(),        "",
                   field.at("single_word").flag(),    field.at("lstrip").flag(),
                   field.at("rstrip").flag(),         field.at("normalized").flag(),
                   field.at("special").flag()};
  if (token.content.empty()) return;
  const auto known = ids_.find(token.content);
  std::uint32_t id = known != ids_.end() ? known->second : model.vocabulary().find(token.content);
  if (id == Vocabulary::kNone) id = next++;
  token.matched = token.normalized ? normalized_text(token.content, normalizer) : token.content;
  ids_[token.content] = id;
  if (token.special) special_.insert(token.content);
  tokens_[id] = std::move(token);
}

const std::string* AddedTokens::token(std::uint32_t id) const {
  const auto found = tokens_.find(id);
  return found == tokens_.end() ? nullptr : &found->second.matched;
}

std::optional<std::uint32_t> AddedTokens::find(const std::string& content) const {
  const auto found = ids_.find(content);
  return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

void AddedTokens::add_matches(const Text& text, const Vocabulary& wanted, Pieces& pieces) const {
  const std::string_view bytes = text.bytes;
  std::size_t last = 0;
  for (Found found = next_match(bytes, 0, wanted); found.id != Vocabulary::kNone;) {
    const std::size_t from = found.end;  // where the search goes on, whatever space the token takes
    const AddedToken& token = tokens_.at(found.id);
    if (!token.single_word || is_word_alone(bytes, found)) {
      if (token.left_strip) found.begin = std::max(space_before(bytes, found.begin, last), last);
      if (token.right_strip) found.end = space_behind(bytes, found.end);
      found.end = std::max(found.end, found.begin);  // a token of spaces, all of which the one before has taken
      if (last < found.begin) add_piece(pieces, text.slice(last, found.begin));
      pieces.push_back({text.slice(found.begin, found.end), found.id});
      last = found.end;
    }
    found = next_match(bytes, from, wanted);
  }
  if (last < bytes.size()) add_piece(pieces, text.slice(last, bytes.size()));
}

Pieces AddedTokens::extract(std::string text, const Normalizer* normalizer, bool tracked) const {
  Pieces pieces;
  add_matches(Text::whole(std::move(text), tracked), plain_, pieces);
  split_pieces(pieces, [&](Text&& piece, Pieces& out) {
    if (normalizer != nullptr) normalizer->apply(piece);
    add_matches(piece, normalized_, out);
  });
  return pieces;
}

}  // namespace eecompile::tok
