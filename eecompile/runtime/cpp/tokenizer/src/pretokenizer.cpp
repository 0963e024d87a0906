#include "pretokenizer.h"

#include <utility>
#include <vector>

#include "byte_level.h"
#include "metaspace.h"
#include "pattern.h"
#include "split.h"
#include "unicode.h"

namespace eecompile::tok {

namespace {

// A pre-tokeniser that is a function.
template <typename Apply>
class PreStep : public PreTokenizer {
 public:
  explicit PreStep(Apply apply) : apply_(std::move(apply)) {}
  void apply(Pieces& pieces) const override { apply_(pieces); }

 private:
  Apply apply_;
};

template <typename Apply>
std::unique_ptr<const PreTokenizer> pre_step(Apply apply) {
  return std::make_unique<PreStep<Apply>>(std::move(apply));
}

void split_at(Pieces& pieces, Flag flag, Delimiters delimiters) {
  split_pieces(pieces, [=](Text&& text, Pieces& out) {
    add_split(text, spans_where(text.bytes, [flag](char32_t c) { return is(c, flag); }), delimiters, out);
  });
}

// As the regular expression \w+|[^\w\s]+ finds words and what is neither word nor space.
void split_words(Pieces& pieces) {
  enum Class { kBlank, kLetters, kSigns };
  const auto class_of = [](char32_t c) { return is(c, kRegexWord) ? kLetters : is(c, kSpace) ? kBlank : kSigns; };
  split_pieces(pieces, [&](Text&& text, Pieces& out) {
    std::size_t begin = 0;
    Class last = kBlank;
    for_each_point(text.bytes, [&](char32_t point, std::size_t at) {
      const Class own = class_of(point);
      if (own == last) return;
      if (last != kBlank) add_piece(out, text.slice(begin, at));
      begin = at;
      last = own;
    });
    if (last != kBlank) add_piece(out, text.slice(begin, text.bytes.size()));
  });
}

void write_each_byte(Text& text) {
  if (text.origins.empty()) {
    text.bytes = bytes_to_chars(text.bytes);
    return;
  }
  Rewriter out(text);
  for (std::size_t at = 0; at < text.bytes.size(); ++at)
    out.put(bytes_to_chars(std::string_view(text.bytes).substr(at, 1)), at);
  text = out.done();
}

constexpr const char* kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::unique_ptr<const PreTokenizer> byte_level_from(const Field& field) {
  const bool prefix = field.at("add_prefix_space").flag(), splits = field.flag("use_regex", true);
  return pre_step([=, pattern = Pattern::known(kGpt2)](Pieces& pieces) {
    split_pieces(pieces, [&](Text&& text, Pieces& out) {
      if (prefix && text.bytes[0] != ' ') text.prepend(" ");
      if (!splits) return add_piece(out, std::move(text));
      add_split(text, pattern.spans(text.bytes), Delimiters::kIsolated, out);
    });
    for (Piece& piece : pieces) {
      if (piece.id < 0) write_each_byte(piece.text);
    }
  });
}

std::unique_ptr<const PreTokenizer> split_from(const Field& field) {
  Pattern pattern = Pattern::from(field.at("pattern"));
  const Delimiters delimiters = delimiters_from(field.at("behavior"));
  const bool inverted = field.at("invert").flag();
  return pre_step([=, pattern = std::move(pattern)](Pieces& pieces) {
    split_pieces(pieces, [&](Text&& text, Pieces& out) {
      std::vector<Span> spans = pattern.spans(text.bytes);
      for (Span& span : spans) span.match = span.match != inverted;
      add_split(text, spans, delimiters, out);
    });
  });
}

std::unique_ptr<const PreTokenizer> metaspace_pre_from(const Field& field) {
  return pre_step([meta = metaspace_from(field)](Pieces& pieces) {
    split_pieces(pieces, [&](Text&& text, Pieces& out) {
      mark_spaces(text, meta);
      if (!meta.split) return add_piece(out, std::move(text));
      const auto is_mark = [&meta](char32_t c) { return c == meta.mark; };
      add_split(text, spans_where(text.bytes, is_mark), Delimiters::kMergedWithNext, out);
    });
  });
}

std::unique_ptr<const PreTokenizer> pre_sequence_from(const Field& field) {
  std::vector<std::unique_ptr<const PreTokenizer>> steps;
  field.at("pretokenizers").each([&](const Field& one) { steps.push_back(pre_tokenizer_from(one)); });
  return pre_step([steps = std::move(steps)](Pieces& pieces) {
    for (const auto& step : steps) step->apply(pieces);
  });
}

}  // namespace

std::unique_ptr<const PreTokenizer> pre_tokenizer_from(const Field& field) {
  const std::string type = field.at("type").text();
  if (type == "ByteLevel") return byte_level_from(field);
  if (type == "Split") return split_from(field);
  if (type == "Metaspace") return metaspace_pre_from(field);
  if (type == "Sequence") return pre_sequence_from(field);
  if (type == "Whitespace") return pre_step(split_words);
  if (type == "WhitespaceSplit") {
    return pre_step([](Pieces& pieces) { split_at(pieces, kSpace, Delimiters::kRemoved); });
  }
  if (type == "BertPreTokenizer") {
    return pre_step([](Pieces& pieces) {
      split_at(pieces, kSpace, Delimiters::kRemoved);
      split_at(pieces, kPunctuation, Delimiters::kIsolated);
    });
  }
  if (type == "Digits" || type == "Punctuation") {
    const bool digits = type == "Digits", single = digits && field.at("individual_digits").flag();
    const Delimiters contiguous = single ? Delimiters::kIsolated : Delimiters::kContiguous;
    const Delimiters marks = field.has("behavior") ? delimiters_from(field.at("behavior")) : Delimiters::kIsolated;
    return pre_step([=](Pieces& pieces) {
      split_at(pieces, digits ? kNumeric : kPunctuation, digits ? contiguous : marks);
    });
  }
  field.unsupported("the pre-tokeniser " + type + " is not supported");
  return pre_step([](Pieces&) {});
}

}  // namespace eecompile::tok
