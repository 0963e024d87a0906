#include "words.h"

#include <fstream>

#include <nlohmann/json.hpp>

#ifdef EECOMPILE_TOKENIZER
#include "eecompile/tokenizer.h"
#endif

namespace eecompile {

#ifdef EECOMPILE_TOKENIZER
struct Words::State {
  Tokenizer tokenizer;
  StreamDecoder decoder;
};
#else
struct Words::State {};
#endif

namespace {

// Whether the tokenizer whose file is `path` has a chat template beside it.
bool has_template(const std::string& path) {
  const std::string folder = path.substr(0, path.rfind('/') + 1);
  if (std::ifstream(folder + "chat_template.jinja").good()) return true;
  std::ifstream file(folder + "tokenizer_config.json");
  const nlohmann::json config = nlohmann::json::parse(file, nullptr, false);
  return config.is_object() && config.contains("chat_template") && !config["chat_template"].is_null();
}

}  // namespace

Words::Words(const std::string& path)
    : path_(path), why_{Code::kUsage, "this bundle has no tokenizer", "", "give token ids: --prompt-ids 1,2,3"} {
  if (path.empty()) return;
#ifdef EECOMPILE_TOKENIZER
  Result<Tokenizer> opened = Tokenizer::open(path);
  if (opened.ok()) {
    StreamDecoder decoder(*opened);
    state_.reset(new State{std::move(opened).value(), std::move(decoder)});
  } else {
    why_ = opened.status();
  }
#else
  why_ = {Code::kUnsupported, "this build reads no tokenizer", "", "give token ids: --prompt-ids 1,2,3"};
#endif
}

Words::~Words() = default;

std::string Words::piece([[maybe_unused]] std::int64_t id) {
#ifdef EECOMPILE_TOKENIZER
  return state_->decoder.push(id);
#else
  return "";
#endif
}

std::string Words::text([[maybe_unused]] const Ids& ids) const {
  std::string found;
#ifdef EECOMPILE_TOKENIZER
  StreamDecoder decoder(state_->tokenizer);
  for (const std::int64_t id : ids) found += decoder.push(id);
#endif
  return found;
}

Result<Ids> Words::encode([[maybe_unused]] const std::string& text, bool raw) const {
  if (!known()) return why_;
  if (!raw && has_template(path_))
    return Status{Code::kUnsupported, "this runtime renders no chat templates", "",
                  "continue the text as it is: --raw"};
#ifdef EECOMPILE_TOKENIZER
  return state_->tokenizer.encode(text, true);
#else
  return why_;
#endif
}

}  // namespace eecompile
