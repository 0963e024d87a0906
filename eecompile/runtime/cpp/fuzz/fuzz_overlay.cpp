// The readers of a policy, a calibration and a profile, on any bytes, for a model with two exits.
#include <cstddef>
#include <cstdint>

#include "documents.h"
#include "manifest.h"
#include "plan.h"

namespace {

eecompile::Manifest manifest() {
  eecompile::Manifest m;
  m.model.layers = 4, m.model.hidden = 4, m.model.vocab = 128, m.model.context = 64;
  m.precision = "fp32", m.cache = "fp32", m.pending_cap = 8;
  m.kv_rules = {"catch_up"};
  m.digest = std::string(64, '0');
  m.exits.resize(2);
  m.exits[0].layer = 1, m.exits[0].gate_units = 2, m.exits[0].gates = {"learned", "max_prob"};
  m.exits[1].layer = 3, m.exits[1].gates = {"entropy"};
  for (eecompile::ExitInfo& e : m.exits) e.adapter = "affine", e.head = "full";
  return m;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const eecompile::Manifest kManifest = manifest();
  const std::string text = eecompile::stress::sealed_text({reinterpret_cast<const char*>(data), size});
  const eecompile::Result<eecompile::Policy> policy = read_policy(text, kManifest, "policy.json");
  const eecompile::Result<eecompile::Calibration> calibration = read_calibration(text, kManifest, "calibration.json");
  if (const auto profile = read_profile(text, kManifest, "profile.json"); profile.ok())
    static_cast<void>(eecompile::pass_rows(*profile));
  if (policy.ok()) static_cast<void>(confident_fault(kManifest, *policy, {}, policy->kv));
  if (policy.ok() && calibration.ok()) static_cast<void>(confident_fault(kManifest, *policy, {*calibration}, policy->kv));
  return 0;
}
