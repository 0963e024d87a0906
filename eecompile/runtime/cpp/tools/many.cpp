#include "many.h"

#include <cstdio>
#include <fstream>

#include <nlohmann/json.hpp>

namespace eecompile {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat =
    "write {\"text\": \"...\"} or {\"prompt_ids\": [1, 2, 3]} on each line of a .jsonl file";

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

std::string dumped(const Json& line) { return line.dump(-1, ' ', false, Json::error_handler_t::replace); }

std::string failure(const Status& status) { return dumped({{"error", status.text()}}); }

// The ids of a line: text, or of a .jsonl file a record with "prompt_ids", or "prompt" or "text".
Result<Ids> ids_of(const std::string& line, bool records, const std::string& where, const Arguments& a,
                   const Result<Text>& text) {
  const auto encoded = [&](const std::string& prompt) -> Result<Ids> {
    if (!text.ok()) return text.status();
    return a.raw ? text->encode(prompt) : text->prompt(prompt);
  };
  if (!records) return encoded(line);
  const Json record = Json::parse(line, nullptr, false);
  const Status bad{Code::kUsage, "not a prompt", where, kFormat};
  if (!record.is_object()) return bad;
  const auto given = [&](const char* key) { return record.contains(key) && !record[key].is_null(); };
  if (given("prompt_ids")) {
    Ids ids;
    for (const Json& id : record["prompt_ids"]) {
      if (!id.is_number_integer() || !record["prompt_ids"].is_array()) return bad;
      ids.push_back(id.get<std::int64_t>());
    }
    return ids;
  }
  for (const char* key : {"prompt", "text", "source"})
    if (given(key) && record[key].is_string()) return encoded(record[key].get<std::string>());
  return bad;
}

}  // namespace

std::string result_line(const Ids& prompt, const Generation& found, const std::string* text, const std::string& mode,
                        const std::string& error) {
  const Stats& s = found.stats;
  const Json stats = {{"tokens_per_second", s.tokens_per_second()},
                      {"prefill_seconds", s.prefill_seconds},
                      {"mean_depth", s.mean_depth()},
                      {"drafted", s.drafted},
                      {"rejected", s.rejected},
                      {"segment_passes", s.segment_passes},
                      {"layer_rows", s.layer_rows}};
  Json whole = {{"prompt_ids", prompt},
                {"token_ids", found.ids},
                {"text", text == nullptr ? Json() : Json(*text)},
                {"exit_layers", found.exit_layers},
                {"mode", mode},
                {"stop_reason", s.stop_reason},
                {"stats", stats}};
  if (!error.empty()) whole["error"] = error;
  return dumped(whole);
}

Status run_file(const Arguments& a, Session& session, const Result<Text>& text, std::size_t& failed) {
  std::ifstream file(a.input);
  std::vector<std::string> lines;
  std::vector<std::size_t> served;  // the line of each prompt that runs
  std::vector<Ids> prompts;
  std::size_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.find_first_not_of(" \t\r\v\f") == line.npos) continue;
    Result<Ids> ids = ids_of(line, ends_with(a.input, ".jsonl"), a.input + ":" + std::to_string(number), a, text);
    lines.push_back(ids.ok() ? "" : failure(ids.status()));
    failed += !ids.ok();
    if (!ids.ok()) continue;
    served.push_back(lines.size() - 1);
    prompts.push_back(std::move(*ids));
  }
  if (lines.empty()) return {Code::kUsage, "there is no prompt to run", a.input, kFormat};
  const auto found = session.generate_many(prompts, a.generate, {}, a.batch);
  if (!found.ok()) return found.status();
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const Outcome& one = (*found)[i];
    const bool began = one.status.ok() || !one.generation.ids.empty();
    std::string said;
    if (text.ok()) {
      StreamDecoder decoder = text->stream();
      for (const std::int64_t id : one.generation.ids) said += decoder.push(id);
    }
    failed += !one.status.ok();
    lines[served[i]] = began ? result_line(prompts[i], one.generation, text.ok() ? &said : nullptr, a.session.mode,
                                           one.status.ok() ? "" : one.status.text())
                             : failure(one.status);
  }
  const std::string part = a.output + ".part";
  std::ofstream target(part, std::ios::binary);
  for (const std::string& line : lines) target << line << "\n";
  target.close();
  if (!target || std::rename(part.c_str(), a.output.c_str()) != 0)
    return {Code::kUsage, "the output cannot be written", a.output, ""};
  return {};
}

}  // namespace eecompile
