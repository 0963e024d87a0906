// Any bytes as text, and as ids, for a Unigram, a WordPiece and a byte-level tokenizer: ids are of the vocabulary, and
// each piece of streamed text is UTF-8.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "eecompile/tokenizer.h"

namespace {

using eecompile::Tokenizer;

constexpr std::array<std::string_view, 3> kFiles = {
    R"({"model":{"type":"Unigram","unk_id":0,"byte_fallback":false,"vocab":[["<unk>",0],["▁",-1],["▁a",-2],["a",-2.5],
        ["b",-3],["ab",-4],["é",-4]]},"normalizer":{"type":"NFKC"},
        "pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},
        "decoder":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true}})",
    R"({"model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,
        "vocab":{"[UNK]":0,"a":1,"##a":2,"b":3,"##b":4,"!":5}},
        "normalizer":{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,
        "lowercase":true},"pre_tokenizer":{"type":"BertPreTokenizer"},
        "decoder":{"type":"WordPiece","prefix":"##","cleanup":true},
        "added_tokens":[{"id":6,"content":"[SEP]","single_word":false,"lstrip":true,"rstrip":true,"normalized":false,
        "special":true}]})",
    R"({"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2,"Ġ":3,"Ġa":4},"merges":["a b","Ġ a"]},
        "pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
        "decoder":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}})"};

std::vector<Tokenizer> opened() {
  std::vector<Tokenizer> all;
  for (const std::string_view file : kFiles) {
    eecompile::Result<Tokenizer> tokenizer = Tokenizer::parse(file, "seed");
    if (!tokenizer.ok()) std::abort();
    all.push_back(std::move(tokenizer).value());
  }
  return all;
}

// JSON can be written of UTF-8 alone.
void check(const std::string& piece) {
  try {
    static_cast<void>(nlohmann::json(piece).dump());
  } catch (const nlohmann::json::type_error&) {
    std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::vector<Tokenizer> kAll = opened();
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const Tokenizer& tokenizer : kAll) {
    std::vector<std::int64_t> ids = tokenizer.encode(text);
    const auto known = [&](std::int64_t id) { return 0 <= id && id < tokenizer.size(); };
    if (!std::all_of(ids.begin(), ids.end(), known)) std::abort();
    for (const char byte : text.substr(0, 64)) ids.push_back(byte);
    eecompile::StreamDecoder stream(tokenizer);
    for (const std::int64_t id : ids) check(stream.push(id));
    check(stream.finish());
  }
  return 0;
}
