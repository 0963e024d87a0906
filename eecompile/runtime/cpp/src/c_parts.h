// What the files of the C interface share. Thread safety and cost: eecompile.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <optional>

#include "eecompile.h"
#include "eecompile/bundle.h"

struct eecompile_bundle {
  eecompile::Bundle bundle;
  std::vector<std::string> labels;
};

struct eecompile_session {
  eecompile::Session session;
};

namespace eecompile {

// A caller's struct as this version knows it: what it lacks is zero. Nothing where there is none.
template <typename T>
T known(const T* given) {
  T own{};
  if (given != nullptr) std::memcpy(static_cast<void*>(&own), given, std::min(given->size, sizeof(T)));
  return own;
}

// Fills in as much of a caller's struct as its version knows.
template <typename T>
void tell(T own, T* caller) {
  own.size = caller->size;
  std::memcpy(static_cast<void*>(caller), &own, std::min(caller->size, sizeof(T)));
}

template <typename T>
std::optional<T> unless_zero(T value) {
  return value == 0 ? std::nullopt : std::optional<T>(value);
}

// Whether one of these structs, where it is given, does not say its size: none of it would count, without a word.
template <typename... T>
bool sizeless(const T*... given) {
  return (... || (given != nullptr && given->size < sizeof given->size));
}

inline constexpr char kNoSize[] = "a struct does not say its size: fill in sizeof of it";

inline bool lacks(const void* array, std::size_t size) { return array == nullptr && size > 0; }

// A caller's structs in this library's, and back.
std::map<std::int64_t, std::optional<Thresholds>> thresholds_of(const eecompile_threshold* given, std::size_t count);
SessionOptions options_of(const eecompile_session_options& given);
GenerateOptions options_of(const eecompile_generate_options& given);
eecompile_stats stats_of(const Stats& stats);

// The code of a fault, whose text becomes the thread's last error; without a Status it is one of usage.
std::int32_t fail(const Status& status) noexcept;
std::int32_t fail(const char* what) noexcept;
std::int32_t out_of_memory() noexcept;

// Runs `work`, which returns a code; nothing it throws gets out.
template <typename Work>
std::int32_t guarded(Work work) noexcept {
  try {
    return work();
  } catch (const std::exception&) {
    return out_of_memory();
  }
}

}  // namespace eecompile
