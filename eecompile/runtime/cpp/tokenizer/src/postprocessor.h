// The post-processors of tokenizer.json, for one sequence: TemplateProcessing, BertProcessing, RobertaProcessing,
// ByteLevel, Sequence.
#pragma once

#include <vector>

#include "field.h"
#include "model.h"

namespace eecompile::tok {

// The special tokens that go around a text's own.
class PostProcessor {
 public:
  PostProcessor() = default;
  explicit PostProcessor(const Field& field);

  Ids apply(Ids ids) const;

 private:
  // Ids, with kText for the text's own.
  static constexpr std::int64_t kText = -1;
  using Template = Ids;

  void add(const Field& field);
  void add_template(const Field& field);

  std::vector<Template> templates_;  // applied one after the other
};

}  // namespace eecompile::tok
