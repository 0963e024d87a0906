#include "normalizer.h"

#include <new>
#include <utility>
#include <vector>

#include "byte_level.h"
#include "forms.h"
#include "pattern.h"
#include "unicode.h"

namespace eecompile::tok {

namespace {

// Bytes that a text may become: steps of a hostile file that each make it longer would take all memory.
constexpr std::size_t kMostMade = std::size_t{1} << 22, kMostOfByte = 256;

// One that looks at a character at a time: `Map(point, put)` calls put(char32_t) for what it becomes.
template <typename Map>
void map_points(Text& text, Map&& map) {
  Rewriter out(text);
  for_each_point(text.bytes, [&](char32_t point, std::size_t at) {
    map(point, [&](char32_t made) { out.put(made, at); });
  });
  text = out.done();
}

void remove_points(Text& text, Flag flag) {
  map_points(text, [flag](char32_t point, auto&& put) {
    if (!is(point, flag)) put(point);
  });
}

void lower(Text& text) {
  std::u32string made;
  map_points(text, [&made](char32_t point, auto&& put) {
    made.clear();
    append_lower(made, point);
    for (const char32_t one : made) put(one);
  });
}

// A normaliser that is a function.
template <typename Apply>
class Simple : public Normalizer {
 public:
  explicit Simple(Apply apply) : apply_(std::move(apply)) {}
  void apply(Text& text) const override { apply_(text); }

 private:
  Apply apply_;
};

template <typename Apply>
std::unique_ptr<const Normalizer> simple(Apply apply) {
  return std::make_unique<Simple<Apply>>(std::move(apply));
}

// What BertNormalizer sets apart: the blocks that BERT's own code names.
bool is_chinese(char32_t c) {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
         (c >= 0x2A700 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) || (c >= 0xF900 && c <= 0xFAFF) ||
         (c >= 0x2F800 && c <= 0x2FA1F);
}

void clean(Text& text) {
  map_points(text, [](char32_t point, auto&& put) {
    if (point != 0 && point != 0xFFFD && !is(point, kOther)) put(is(point, kSpace) ? U' ' : point);
  });
}

void set_chinese_apart(Text& text) {
  map_points(text, [](char32_t point, auto&& put) {
    const bool chinese = is_chinese(point);
    if (chinese) put(U' ');
    put(point);
    if (chinese) put(U' ');
  });
}

std::unique_ptr<const Normalizer> bert_from(const Field& field) {
  const bool cleans = field.flag("clean_text", true), chinese = field.flag("handle_chinese_chars", true);
  const bool lowers = field.flag("lowercase", true), strips = field.flag("strip_accents", lowers);
  return simple([=](Text& text) {
    if (cleans) clean(text);
    if (chinese) set_chinese_apart(text);
    if (strips) {
      normalize_form(text, false, false);
      remove_points(text, kNonspacing);
    }
    if (lowers) lower(text);
  });
}

// SentencePiece's rules for machine translation: some controls go, what else may part words becomes a space.
void nmt(Text& text) {
  map_points(text, [](char32_t c, auto&& put) {
    const bool removed = (c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F ||
                         c == 0x9F;
    const bool space = c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 || (c >= 0x200B && c <= 0x200F) ||
                       c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
    if (!removed) put(space ? U' ' : c);
  });
}

std::unique_ptr<const Normalizer> strip_from(const Field& field) {
  const bool left = field.at("strip_left").flag(), right = field.at("strip_right").flag();
  return simple([=](Text& text) {
    std::size_t begin = 0, end = text.bytes.size();
    while (left && begin < end && is(decode(text.bytes, begin).point, kSpace)) begin += decode(text.bytes, begin).size;
    while (right && begin < end && is(decode_before(text.bytes, end).point, kSpace)) {
      end -= decode_before(text.bytes, end).size;
    }
    const bool at_start = text.at_start;
    text = text.slice(begin, end);
    text.at_start = at_start;
  });
}

std::unique_ptr<const Normalizer> replace_from(const Field& field) {
  Pattern pattern = Pattern::from(field.at("pattern"));
  std::string content = field.at("content").text();
  return simple([pattern = std::move(pattern), content = std::move(content)](Text& text) {
    const std::vector<Span> spans = pattern.spans(text.bytes);
    if (spans.size() * content.size() > kMostMade + kMostOfByte * text.bytes.size()) throw std::bad_alloc();
    Rewriter out(text);
    for (const Span& span : spans) {
      if (span.match) {
        out.put(content, span.end - 1);
      } else {
        for_each_point(std::string_view(text.bytes).substr(span.begin, span.end - span.begin),
                       [&](char32_t point, std::size_t at) { out.put(point, span.begin + at); });
      }
    }
    text = out.done();
  });
}

std::unique_ptr<const Normalizer> sequence_from(const Field& field) {
  std::vector<std::unique_ptr<const Normalizer>> steps;
  field.at("normalizers").each([&](const Field& one) { steps.push_back(normalizer_from(one)); });
  return simple([steps = std::move(steps)](Text& text) {
    const std::size_t most = kMostMade + kMostOfByte * text.bytes.size();
    for (const auto& step : steps) {
      step->apply(text);
      if (text.bytes.size() > most) throw std::bad_alloc();
    }
  });
}

void write_bytes(Text& text) {
  Rewriter out(text);
  for_each_point(text.bytes, [&](char32_t, std::size_t at) {
    out.put(bytes_to_chars(std::string_view(text.bytes).substr(at, decode(text.bytes, at).size)), at);
  });
  text = out.done();
}

}  // namespace

std::unique_ptr<const Normalizer> normalizer_from(const Field& field) {
  const std::string type = field.at("type").text();
  if (type == "NFC") return simple([](Text& text) { normalize_form(text, false, true); });
  if (type == "NFD") return simple([](Text& text) { normalize_form(text, false, false); });
  if (type == "NFKC") return simple([](Text& text) { normalize_form(text, true, true); });
  if (type == "NFKD") return simple([](Text& text) { normalize_form(text, true, false); });
  if (type == "Lowercase") return simple(lower);
  if (type == "StripAccents") return simple([](Text& text) { remove_points(text, kMark); });
  if (type == "Nmt") return simple(nmt);
  if (type == "ByteLevel") return simple(write_bytes);
  if (type == "BertNormalizer") return bert_from(field);
  if (type == "Strip") return strip_from(field);
  if (type == "Replace") return replace_from(field);
  if (type == "Sequence") return sequence_from(field);
  if (type == "Precompiled") return precompiled_from(field);
  if (type == "Prepend") {
    return simple([prefix = field.at("prepend").text()](Text& text) {
      if (!text.bytes.empty()) text.prepend(prefix);
    });
  }
  field.unsupported("the normaliser " + type + " is not supported");
  return simple([](Text&) {});
}

}  // namespace eecompile::tok
