// The command line of eecompile-run: the flags of `eecompile run` that this runtime serves.
#pragma once

#include <initializer_list>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "eecompile/bundle.h"

namespace eecompile {

struct Arguments {
  std::string bundle;
  std::optional<std::string> prompt;
  std::optional<Ids> prompt_ids;
  std::vector<std::string> thresholds;  // LAYER[:CRITERION]=V or LAYER=never
  OpenOptions open;
  SessionOptions session;
  GenerateOptions generate;
  std::string input, output;  // a file of prompts, and where its answers go
  std::size_t batch = 0;      // prompts of it that run side by side; 0: the bundle's choice
  std::optional<std::string> pair, granularity;  // of classifiers
  bool truncate = false;
  std::set<std::string> given;  // the options' words
  bool json = false, stream = false, raw = false, help = false;
};

// Parses arguments without the program's name; kUsage says which is wrong.
Result<Arguments> parse(const std::vector<std::string>& words);

// Adds the thresholds to options, on top of the bundle's own (cli/options.py): a gate of a closed exit that no value
// names is left wide open, which only drafts may have.
Status add_thresholds(const std::vector<std::string>& values, const Bundle& bundle, SessionOptions& options);

// kUsage if one of these options was given: a model that does this (`kind`) has none.
Status refuse_given(const Arguments& arguments, std::initializer_list<const char*> options, const std::string& kind);

// kUsage for options that a language model has no use for, or that the others leave without a meaning.
Status check_generating(const Arguments& arguments);

extern const char* const kHelp;

}  // namespace eecompile
