// The parts of a manifest, each read from its own object.
//
// `path` names the object and `fault` takes the first fault (json.h).
// Thread safety: functions of their arguments. Cost: what they return.
#pragma once

#include <string>

#include "json.h"
#include "manifest.h"

namespace eecompile {

GraphInfo graph_from(const Json& value, const std::string& path, std::string& fault);
ModelInfo model_from(const Json& value, std::string& fault);
ExitInfo exit_from(const Json& value, const std::string& path, std::string& fault);
HeadInfo head_from(const Json& value, const std::string& path, std::int64_t vocab, std::string& fault);
Step step_from(const Json& value, const std::string& path, std::string& fault);

// The labels and the description of an encoder, into `m`: what only a classifier's manifest has.
void read_encoder(Manifest& m, Fields& fields, std::string& fault);

// What only an encoder-decoder's manifest has, into `m`.
void read_source(Manifest& m, Fields& fields, std::string& fault);

// Why source, encoder and segments do not go together; empty where they do.
std::string source_fault(const Manifest& m);

// What the manifest has that one of its task cannot have, or lacks (manifest.py, shapes.py); empty where nothing.
std::string task_fault(const Manifest& m);

// Reads what every overlay has, and checks that it is of this core and as it was written.
Status check_overlay(Fields& fields, std::string_view data, const Manifest& manifest, std::string_view kind,
                     std::string& fault, const std::string& where);

}  // namespace eecompile
