// The declarations of gpu_driver.h against the vendor's: the same functions, but for enumerations that are ints there;
// and those of conditions.h against the plugin library's source.
#include <cuda.h>

#include <cstddef>
#include <type_traits>

#include "conditions.h"
#include "exit_decision/conditions.cpp"
#include "gpu_driver.h"

namespace eecompile {
namespace {

template <typename A, typename B>
constexpr bool alike() {
  if constexpr (std::is_enum_v<B>) return std::is_same_v<A, int> && sizeof(B) == sizeof(int);
  return std::is_same_v<A, B> || (std::is_same_v<A, const Copy2d*> && std::is_same_v<B, const CUDA_MEMCPY2D*>);
}

template <typename... A, typename... B>
constexpr bool same(int (*)(A...), CUresult (*)(B...)) {
  if constexpr (sizeof...(A) == sizeof...(B))
    return (alike<A, B>() && ...);
  else
    return false;
}

#define EECOMPILE_SAME(name, arguments) static_assert(same(decltype(CudaDriver::name){}, decltype (&::name){}), #name);
EECOMPILE_CUDA(EECOMPILE_SAME)

#define EECOMPILE_SAME_CONDITION(name, arguments) \
  static_assert(std::is_same_v<decltype(ConditionFunctions::name), decltype(&eecompile_condition_##name)>, #name);
EECOMPILE_CONDITIONS(EECOMPILE_SAME_CONDITION)

static_assert(static_cast<int>(ExitOutcome::kNotReached) == kNotReached &&
              static_cast<int>(ExitOutcome::kRefused) == kRefused && static_cast<int>(ExitOutcome::kAsked) == kAsked &&
              static_cast<int>(ExitOutcome::kDeclined) == kDeclined && static_cast<int>(ExitOutcome::kFired) == kFired);

static_assert(sizeof(Copy2d) == sizeof(CUDA_MEMCPY2D));
static_assert(offsetof(Copy2d, source_device) == offsetof(CUDA_MEMCPY2D, srcDevice));
static_assert(offsetof(Copy2d, source_pitch) == offsetof(CUDA_MEMCPY2D, srcPitch));
static_assert(offsetof(Copy2d, target_type) == offsetof(CUDA_MEMCPY2D, dstMemoryType));
static_assert(offsetof(Copy2d, target_device) == offsetof(CUDA_MEMCPY2D, dstDevice));
static_assert(offsetof(Copy2d, target_pitch) == offsetof(CUDA_MEMCPY2D, dstPitch));
static_assert(offsetof(Copy2d, width) == offsetof(CUDA_MEMCPY2D, WidthInBytes));
static_assert(offsetof(Copy2d, height) == offsetof(CUDA_MEMCPY2D, Height));
static_assert(kComputeMajor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
static_assert(kComputeMinor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
static_assert(kOnDevice == CU_MEMORYTYPE_DEVICE);
static_assert(kCaptureThreadLocal == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
static_assert(kNonBlocking == CU_STREAM_NON_BLOCKING && kNoTiming == CU_EVENT_DISABLE_TIMING);
static_assert(kPinned == (CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP));

}  // namespace
}  // namespace eecompile
