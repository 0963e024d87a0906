// What can go wrong, as a value: nothing here throws, and a function that may fail returns a Status or a Result.
//
// The codes are the families of eecompile/errors.py, and `exit_status` is what its command line exits with.
// Thread safety: values, as safe as the strings they hold. Cost: a Status that is fine holds three empty strings.
#pragma once

#include <optional>
#include <string>
#include <utility>

namespace eecompile {

enum class Code {
  kOk,
  kUsage,           // the request cannot be served as asked
  kContextFull,     // a prompt and what is to follow it do not fit the context
  kUncalibrated,    // confident mode was asked of an exit without a matching calibration
  kMissingBackend,  // a library that is loaded at run time is not there
  kIntegrity,       // a bundle is not intact: changed, truncated, missing or out of range
  kNumeric,         // the model computed no usable number
  kUnsupported,     // the bundle is intact and needs what this runtime does not do
  kCancelled,       // the caller's callback asked to stop
  kInternal,        // memory ran out, or a fault of this library
};

// what: one sentence on what went wrong; where: the file, tensor, option or stage; mend: what to do about it.
struct Status {
  Code code = Code::kOk;
  std::string what;
  std::string where;
  std::string mend;

  bool ok() const { return code == Code::kOk; }

  int exit_status() const {
    switch (code) {
      case Code::kOk:
        return 0;
      case Code::kUsage:
      case Code::kContextFull:
      case Code::kUncalibrated:
        return 2;
      case Code::kMissingBackend:
      case Code::kUnsupported:
        return 3;
      case Code::kIntegrity:
        return 4;
      case Code::kNumeric:
      case Code::kCancelled:
      case Code::kInternal:
        return 1;
    }
    return 1;
  }

  // As the Python command prints it: "where: what", and the mend on a line of its own.
  std::string text() const {
    return (where.empty() ? "" : where + ": ") + what + (mend.empty() ? "" : "\n  mend: " + mend);
  }
};

// The Status of a request that cannot be served as asked.
inline Status usage(std::string what, std::string mend = "", std::string where = "") {
  return {Code::kUsage, std::move(what), std::move(where), std::move(mend)};
}

// A value, or the Status that says why there is none. `value` may be asked for only where `ok`.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}          // NOLINT: returned as it is
  Result(Status status) : status_(std::move(status)) {}  // NOLINT: one that is not ok

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }

  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T&& value() && { return *std::move(value_); }

  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }

 private:
  Status status_;
  std::optional<T> value_;
};

}  // namespace eecompile
