// Tokenizes for tests: one JSON value a line in, one a line out.
//
//   eecompile-tokenize TOKENIZER.JSON encode|encode-plain < texts > ids     a text: "..", or {"bytes": hex digits}
//   eecompile-tokenize TOKENIZER.JSON decode|decode-all   < ids   > texts   -all: special tokens, too
//   eecompile-tokenize TOKENIZER.JSON spans               < {"text": .., "pair": text or null, "most": number or null}
//   eecompile-tokenize TOKENIZER.JSON stream              < ids   > pieces  the text that each id completes, and the rest
//
// Exit status: as eecompile::Status has it.
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "eecompile/tokenizer.h"

namespace {

using Json = nlohmann::json;

std::string text_of(const Json& line) {
  if (line.is_string()) return line.get<std::string>();
  const auto digits = line.at("bytes").get<std::string>();
  std::string bytes;
  for (std::size_t i = 0; i + 1 < digits.size(); i += 2) {
    bytes.push_back(static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

Json pieces_of(const eecompile::Tokenizer& tokenizer, const std::vector<std::int64_t>& ids) {
  eecompile::StreamDecoder stream(tokenizer);
  Json pieces = Json::array();
  for (const std::int64_t id : ids) pieces.push_back(stream.push(id));
  pieces.push_back(stream.finish());
  return pieces;
}

Json spans_of(const eecompile::Tokenizer& tokenizer, const Json& line) {
  std::optional<std::string> pair;
  std::optional<std::size_t> most;
  if (!line.at("pair").is_null()) pair = text_of(line.at("pair"));
  if (!line.at("most").is_null()) most = line.at("most").get<std::size_t>();
  const auto made = tokenizer.encoding(text_of(line.at("text")), pair, most);
  if (!made.ok()) return made.status().text();
  return {made->ids, made->types, made->special, made->second, made->spans};
}

Json answer(const eecompile::Tokenizer& tokenizer, const std::string& verb, const Json& line) {
  if (verb == "encode") return tokenizer.encode(text_of(line));
  if (verb == "encode-plain") return tokenizer.encode(text_of(line), false);
  if (verb == "spans") return spans_of(tokenizer, line);
  const auto ids = line.get<std::vector<std::int64_t>>();
  if (verb == "decode") return tokenizer.decode(ids);
  if (verb == "decode-all") return tokenizer.decode(ids, false);
  return pieces_of(tokenizer, ids);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::fputs("usage: eecompile-tokenize TOKENIZER.JSON encode|encode-plain|spans|decode|decode-all|stream\n", stderr);
    return 2;
  }
  const auto tokenizer = eecompile::Tokenizer::open(arguments[1]);
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", tokenizer.status().text().c_str());
    return tokenizer.status().exit_status();
  }
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << answer(tokenizer.value(), arguments[2], Json::parse(line)).dump() << '\n';
  }
  return 0;
}
