// What the overlays of a bundle have in common, and the one that only says what passes took: a profile.
#include "eecompile/contract.h"
#include "manifest_parts.h"

namespace eecompile {
namespace {

constexpr std::string_view kRestore = "restore it from a copy of the bundle, or build the bundle again";
constexpr std::string_view kRemove = "remove it and measure again with `eecompile profile BUNDLE`";
constexpr std::size_t kMostPasses = 100'000, kLongestName = 200;

PassTime pass_from(const Json& value, const std::string& path, std::string& fault) {
  Fields f(value, path, fault);
  PassTime one;
  one.graph = f.text("graph", kLongestName, 1);
  one.rows = f.integer("rows", 1, 65536);
  static_cast<void>(f.integer("length", 0, contract::kMaxContext));
  one.seconds = f.number("seconds", 0, 3600);
  f.finish();
  return one;
}

}  // namespace

Status check_overlay(Fields& f, std::string_view data, const Manifest& m, std::string_view kind, std::string& fault,
                     const std::string& where) {
  const std::string core = f.digest("core"), digest = f.digest("digest");
  f.choice("kind", std::array<std::string_view, 1>{kind}, kind);
  f.finish();
  if (!fault.empty()) return damaged("does not follow the schema: " + fault, where);
  if (document_digest(data) != digest)
    return damaged("changed by hand or damaged: it does not agree with its own digest", where);
  if (core != m.digest)
    return damaged("made for another build: it names another core", where, kind == "profile" ? kRemove : kRestore);
  return {};
}

Result<Profile> read_profile(std::string_view data, const Manifest& m, const std::string& where) {
  Result<Document> document = parse_object(data, where);
  if (!document.ok()) return document.status();
  std::string fault;
  Fields f(*document, "", fault);
  Profile profile;
  static_cast<void>(f.text("device", kLongestName, 1));
  static_cast<void>(f.integer("threads", 1, 4096));
  for (const Json& pass : f.list("passes", kMostPasses)) {
    profile.passes.push_back(pass_from(pass, "passes." + std::to_string(profile.passes.size()), fault));
    if (!fault.empty()) break;
  }
  if (Status status = check_overlay(f, data, m, "profile", fault, where); !status.ok()) return status;
  return profile;
}

}  // namespace eecompile
