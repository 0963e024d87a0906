// An exit in a CUDA graph of a step: its own graph, its gate, its head, and what came of them (runtime/device_exit.py).
//
// Thread safety: belongs to one session; what takes a Level to whoever holds the GPU's turn. Cost: a row and a context
// for each of its two passes.
#pragma once

#include <memory>
#include <optional>

#include "askers.h"
#include "branches.h"
#include "device_pass.h"
#include "gates.h"
#include "heads.h"

namespace eecompile {

// A head over rows on the GPU, bound to what it says of them. Bounds that nothing fails until they are set.
class DeviceHead {
 public:
  DeviceHead() = default;  // of no use before it is bound
  static Result<DeviceHead> bind(const Engine& engine, const Buffer& hidden);

  DevicePass& pass() const { return *pass_; }
  Decisions decisions() const;
  std::int64_t* tokens() const { return token_.data<std::int64_t>(); }
  const std::uint8_t* flag() const { return flag_.data<std::uint8_t>(); }
  void set(const Bounds& bounds);  // of the one row that there is

 private:
  Tensor token_, max_prob_, margin_, entropy_, flag_, bounds_;
  std::unique_ptr<DevicePass> pass_;
};

class DeviceExit {
 public:
  // rule: of a learned gate and bounds for a head, and nothing else.
  static Result<std::unique_ptr<DeviceExit>> bind(GpuMemory& memory, const ExitAsker& asker, const Engine& head,
                                                  const ExitRule& rule, std::int64_t width);

  void* row() const { return row_.data<std::byte>(); }  // where the newest row is to be copied
  bool gated() const { return gate_.has_value(); }      // whether a learned gate is asked before the head
  DevicePass& pass() const { return *exit_; }
  DevicePass& head_pass() const { return head_.pass(); }
  Decisions decisions() const { return head_.decisions(); }

  // What came of it. kInternal where the step did not get here, or ended between gate and head.
  Result<ExitOutcome> outcome() const;

  void clear(const Bounds& bounds);  // makes ready for a step, with these bounds for the head

  // Puts the exit's graph into a section, then its gate; or the head and its decision, where there is no gate.
  Status enqueue(Level& level, const ConditionHandle* asks, ConditionHandle goes_on);

  // Has the head run where the gate has agreed, and decide, in any case.
  Status enqueue_head(Level& level, ConditionHandle asks, ConditionHandle goes_on);

 private:
  DeviceExit(GpuMemory& memory, const ExitRule& rule, std::int64_t width);
  std::int32_t* outcome_address() const { return reinterpret_cast<std::int32_t*>(outcome_.get()); }
  Status decide(Level& level, ConditionHandle goes_on);

  Tensor row_, ready_, value_;
  Block outcome_;
  std::optional<double> gate_;  // the learned gate's threshold
  DeviceHead head_;
  std::unique_ptr<DevicePass> exit_;
};

// A pass that an engine has bound, as one that a graph can hold; kInternal where it is none.
Result<std::unique_ptr<DevicePass>> on_device(Result<std::unique_ptr<Pass>> bound);

// The fault of a graph that has not run as far as what it has decided says.
Status unfinished();

}  // namespace eecompile
