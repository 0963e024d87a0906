// The post-processors of tokenizer.json: TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel, Sequence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "eecompile/tokenizer.h"
#include "field.h"
#include "model.h"

namespace eecompile::tok {

// Spaces that a token reads as begins and ends with.
struct Blanks {
  std::int64_t leading = 0, trailing = 0;
};
Blanks blanks_of(std::string_view token);

// One text's tokens before post-processing, and what each reads.
struct Sequence {
  Encoding encoding;
  std::vector<Blanks> blanks;
};

// The special tokens that go around a text's own, or around those of a pair of texts.
class PostProcessor {
 public:
  PostProcessor() = default;
  explicit PostProcessor(const Field& field);

  Ids apply(Ids ids) const;

  // The same of one whole text, or of two.
  Encoding apply(std::vector<Sequence> texts) const;

  // Special tokens that `apply` adds.
  std::size_t added(bool pair) const;

  bool takes_pairs() const { return templates_.size() < 2; }

 private:
  // A special token, or in place of an id kFirst or kSecond: all of a text's tokens. type: -1 keeps the text's own.
  struct Part {
    std::int64_t id, type;
  };
  struct Template {
    std::vector<Part> single, pair;
  };
  static constexpr std::int64_t kFirst = -1, kSecond = -2;

  void add(const Field& field);
  void add_bert(const Field& field);
  void add_roberta(const Field& field);
  void add_template(const Field& field);
  static std::vector<Part> parts_from(const Field& pieces, const Field& specials);

  std::vector<Template> templates_;  // applied one after the other
  std::vector<bool> trims_;          // whether spans lose their spaces: each time, whether a space was put before texts
};

}  // namespace eecompile::tok
