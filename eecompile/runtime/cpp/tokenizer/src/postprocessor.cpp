#include "postprocessor.h"

#include <algorithm>
#include <utility>

#include "unicode.h"
#include "utf8.h"

namespace eecompile::tok {

namespace {

constexpr std::size_t kMostPieces = 256;
constexpr char32_t kSpaceByte = 0x120;  // what stands for a space in byte-level vocabularies

// ["[CLS]", 101]
std::int64_t id_of(const Field& pair) {
  if (pair.size() == 2) return pair.element(1).number();
  pair.malformed("is no token with an id");
  return 0;
}

bool is_blank(char32_t point) { return point == kSpaceByte || is(point, kSpace); }

// Takes the spaces that a token begins and ends with out of its span, but not a single one that may have been put before
// the text.
void trim(Sequence& text, bool prefixed) {
  for (std::size_t i = 0; i < text.blanks.size(); ++i) {
    auto [leading, trailing] = text.blanks[i];
    auto& [begin, end] = text.encoding.spans[i];
    if (leading == 1 && prefixed && (i == 0 || begin == 0)) leading = 0;
    if (leading > 0) begin = std::min(begin + leading, end);
    if (trailing > 0 && end >= trailing) end = std::max(end - trailing, begin);
  }
}

void join(Encoding& whole, const Encoding& text, std::int64_t type, bool second) {
  whole.ids.insert(whole.ids.end(), text.ids.begin(), text.ids.end());
  whole.spans.insert(whole.spans.end(), text.spans.begin(), text.spans.end());
  whole.special.insert(whole.special.end(), text.special.begin(), text.special.end());
  for (const std::int64_t own : text.types) whole.types.push_back(type < 0 ? own : type);
  for (const bool own : text.second) whole.second.push_back(own || second);
}

}  // namespace

Blanks blanks_of(std::string_view token) {
  const std::u32string letters = points(token);
  return {std::find_if_not(letters.begin(), letters.end(), is_blank) - letters.begin(),
          std::find_if_not(letters.rbegin(), letters.rend(), is_blank) - letters.rbegin()};
}

PostProcessor::PostProcessor(const Field& field) { add(field); }

void PostProcessor::add(const Field& field) {
  const std::string type = field.at("type").text();
  if (type == "ByteLevel") {
    if (field.flag("trim_offsets", true)) trims_.push_back(field.flag("add_prefix_space", true));
  } else if (type == "TemplateProcessing") {
    add_template(field);
  } else if (type == "BertProcessing") {
    add_bert(field);
  } else if (type == "RobertaProcessing") {
    add_roberta(field);
  } else if (type == "Sequence") {
    field.at("processors").each([this](const Field& one) { add(one); });
  } else {
    field.unsupported("the post-processor " + type + " is not supported");
  }
}

void PostProcessor::add_bert(const Field& field) {
  const std::int64_t cls = id_of(field.at("cls")), sep = id_of(field.at("sep"));
  templates_.push_back(
      {{{cls, 0}, {kFirst, -1}, {sep, 0}}, {{cls, 0}, {kFirst, -1}, {sep, 0}, {kSecond, -1}, {sep, 1}}});
}

void PostProcessor::add_roberta(const Field& field) {
  const std::int64_t cls = id_of(field.at("cls")), sep = id_of(field.at("sep"));
  if (field.flag("trim_offsets", true)) trims_.push_back(field.flag("add_prefix_space", true));
  templates_.push_back(
      {{{cls, 0}, {kFirst, 0}, {sep, 0}}, {{cls, 0}, {kFirst, 0}, {sep, 0}, {sep, 0}, {kSecond, 0}, {sep, 0}}});
}

void PostProcessor::add_template(const Field& field) {
  const Field single = field.at("single"), specials = field.at("special_tokens");
  Template made{parts_from(single, specials), {{kFirst, 0}, {kSecond, 1}}};
  for (const Part& part : made.single)
    if (part.id == kSecond) single.malformed("names a second text");
  if (field.has("pair")) made.pair = parts_from(field.at("pair"), specials);
  for (const std::vector<Part>* parts : {&made.single, &made.pair})
    for (const std::int64_t text : {kFirst, kSecond})
      if (std::count_if(parts->begin(), parts->end(), [&](const Part& part) { return part.id == text; }) > 1)
        field.unsupported("a template that holds a text twice is not supported");  // several would make it grow without end
  templates_.push_back(std::move(made));
}

std::vector<PostProcessor::Part> PostProcessor::parts_from(const Field& pieces, const Field& specials) {
  std::vector<Part> made;
  if (pieces.size() > kMostPieces) {  // each is looked for among the special tokens
    pieces.unsupported("a template of more than " + std::to_string(kMostPieces) + " pieces is not supported");
    return made;
  }
  pieces.each([&](const Field& piece) {
    const bool text = piece.has("Sequence");
    const Field described = piece.at(text ? "Sequence" : "SpecialToken");
    const std::string name = described.at("id").text();
    const std::int64_t type = described.has("type_id") ? described.at("type_id").number() : 0;
    if (text) {
      made.push_back({name == "A" ? kFirst : kSecond, type});
      return;
    }
    specials.at(name.c_str()).at("ids").each([&](const Field& id) { made.push_back({id.number(), type}); });
  });
  return made;
}

Ids PostProcessor::apply(Ids ids) const {
  for (const Template& around : templates_) {
    Ids made;
    for (const Part& part : around.single) {
      if (part.id == kFirst) {
        made.insert(made.end(), ids.begin(), ids.end());
      } else {
        made.push_back(part.id);
      }
    }
    ids = std::move(made);
  }
  return ids;
}

Encoding PostProcessor::apply(std::vector<Sequence> sequences) const {
  for (const bool prefixed : trims_)
    for (Sequence& sequence : sequences) trim(sequence, prefixed);
  std::vector<Encoding> texts;
  for (Sequence& sequence : sequences) texts.push_back(std::move(sequence.encoding));
  const bool pair = texts.size() == 2;
  static const Template kBare{{{kFirst, -1}}, {{kFirst, -1}, {kSecond, -1}}};
  const std::vector<Template> bare = {kBare};
  for (const Template& around : templates_.empty() ? bare : templates_) {
    Encoding whole;
    for (const Part& part : pair ? around.pair : around.single) {
      if (part.id == kFirst || part.id == kSecond) {
        join(whole, texts[part.id == kFirst ? 0 : 1], part.type, part.id == kSecond);
      } else {
        join(whole, {{part.id}, {part.type}, {true}, {false}, {{0, 0}}}, part.type, false);
      }
    }
    texts = {std::move(whole)};
  }
  return std::move(texts[0]);
}

std::size_t PostProcessor::added(bool pair) const {
  std::size_t count = 0;
  for (const Template& around : templates_)
    for (const Part& part : pair ? around.pair : around.single)
      if (part.id != kFirst && part.id != kSecond) ++count;
  return count;
}

}  // namespace eecompile::tok
