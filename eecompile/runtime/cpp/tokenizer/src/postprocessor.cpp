#include "postprocessor.h"

#include <string>
#include <utility>

namespace eecompile::tok {

namespace {

// ["[CLS]", 101]
std::int64_t id_of(const Field& pair) {
  if (pair.size() == 2) return pair.element(1).number();
  pair.malformed("is no token with an id");
  return 0;
}

}  // namespace

PostProcessor::PostProcessor(const Field& field) { add(field); }

void PostProcessor::add(const Field& field) {
  const std::string type = field.at("type").text();
  if (type == "ByteLevel") return;  // trims offsets, which are not kept here
  if (type == "TemplateProcessing") return add_template(field);
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    templates_.push_back({id_of(field.at("cls")), kText, id_of(field.at("sep"))});
  } else if (type == "Sequence") {
    const Field all = field.at("processors");
    for (std::size_t i = 0; i < all.size(); ++i) add(all.element(i));
  } else {
    field.unsupported("the post-processor " + type + " is not supported");
  }
}

void PostProcessor::add_template(const Field& field) {
  Template made;
  const Field single = field.at("single");
  for (std::size_t i = 0; i < single.size(); ++i) {
    const Field part = single.element(i);
    if (part.has("Sequence")) {
      if (part.at("Sequence").at("id").text() != "A") part.malformed("names a second text");
      made.push_back(kText);
      continue;
    }
    const std::string name = part.at("SpecialToken").at("id").text();
    const Field ids = field.at("special_tokens").at(name.c_str()).at("ids");
    for (std::size_t k = 0; k < ids.size(); ++k) made.push_back(ids.element(k).number());
  }
  templates_.push_back(std::move(made));
}

Ids PostProcessor::apply(Ids ids) const {
  for (const Template& around : templates_) {
    Ids made;
    for (const std::int64_t id : around) {
      if (id == kText) {
        made.insert(made.end(), ids.begin(), ids.end());
      } else {
        made.push_back(id);
      }
    }
    ids = std::move(made);
  }
  return ids;
}

}  // namespace eecompile::tok
