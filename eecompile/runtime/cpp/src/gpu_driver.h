// The functions of the CUDA driver's library that this runtime calls, loaded at run time: no CUDA toolkit is needed to
// compile it or to run it. tests/cpp/gpu_declared.cpp holds these declarations against the vendor's.
//
// Thread safety and cost: the driver's.
#pragma once

#include <cstddef>
#include <string>

struct CUctx_st;
struct CUevent_st;
struct CUgraph_st;
struct CUgraphExec_st;
struct CUgraphNode_st;
struct CUstream_st;

namespace eecompile {

using DeviceAddress = unsigned long long;
using CudaContext = CUctx_st*;
using CudaStream = CUstream_st*;
using CudaEvent = CUevent_st*;
using CudaGraph = CUgraph_st*;
using CudaGraphExec = CUgraphExec_st*;
using CudaGraphNode = CUgraphNode_st*;

// A copy of `height` lines of `width` bytes between two pitched places (CUDA_MEMCPY2D).
struct Copy2d {
  std::size_t source_x = 0, source_y = 0;
  int source_type = 0;
  const void* source_host = nullptr;
  DeviceAddress source_device = 0;
  void* source_array = nullptr;
  std::size_t source_pitch = 0;
  std::size_t target_x = 0, target_y = 0;
  int target_type = 0;
  void* target_host = nullptr;
  DeviceAddress target_device = 0;
  void* target_array = nullptr;
  std::size_t target_pitch = 0;
  std::size_t width = 0, height = 0;
};

inline constexpr int kComputeMajor = 75, kComputeMinor = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
inline constexpr int kOnDevice = 2;                           // CU_MEMORYTYPE_DEVICE
inline constexpr int kCaptureThreadLocal = 1;                 // CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
inline constexpr unsigned kNonBlocking = 1;                   // CU_STREAM_NON_BLOCKING
inline constexpr unsigned kNoTiming = 2;                      // CU_EVENT_DISABLE_TIMING
inline constexpr unsigned kPinned = 3;                        // CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP

// Name, as the library exports it, and arguments; all of them return 0 where they succeed.
#define EECOMPILE_CUDA(X)                                                                                              \
  X(cuInit, (unsigned))                                                                                                \
  X(cuGetErrorName, (int, const char**))                                                                               \
  X(cuGetErrorString, (int, const char**))                                                                             \
  X(cuDriverGetVersion, (int*))                                                                                        \
  X(cuDeviceGet, (int*, int))                                                                                          \
  X(cuDeviceGetName, (char*, int, int))                                                                                \
  X(cuDeviceGetAttribute, (int*, int, int))                                                                            \
  X(cuDevicePrimaryCtxRetain, (CudaContext*, int))                                                                     \
  X(cuDevicePrimaryCtxRelease_v2, (int))                                                                               \
  X(cuCtxSetCurrent, (CudaContext))                                                                                    \
  X(cuStreamCreate, (CudaStream*, unsigned))                                                                           \
  X(cuStreamDestroy_v2, (CudaStream))                                                                                  \
  X(cuStreamBeginCapture_v2, (CudaStream, int))                                                                        \
  X(cuStreamEndCapture, (CudaStream, CudaGraph*))                                                                      \
  X(cuEventCreate, (CudaEvent*, unsigned))                                                                             \
  X(cuEventDestroy_v2, (CudaEvent))                                                                                    \
  X(cuEventRecord, (CudaEvent, CudaStream))                                                                            \
  X(cuEventSynchronize, (CudaEvent))                                                                                   \
  X(cuGraphCreate, (CudaGraph*, unsigned))                                                                             \
  X(cuGraphInstantiateWithFlags, (CudaGraphExec*, CudaGraph, unsigned long long))                                      \
  X(cuGraphLaunch, (CudaGraphExec, CudaStream))                                                                        \
  X(cuGraphDestroy, (CudaGraph))                                                                                       \
  X(cuGraphExecDestroy, (CudaGraphExec))                                                                               \
  X(cuMemAlloc_v2, (DeviceAddress*, std::size_t))                                                                      \
  X(cuMemFree_v2, (DeviceAddress))                                                                                     \
  X(cuMemHostAlloc, (void**, std::size_t, unsigned))                                                                   \
  X(cuMemFreeHost, (void*))                                                                                            \
  X(cuMemHostGetDevicePointer_v2, (DeviceAddress*, void*, unsigned))                                                   \
  X(cuMemsetD8Async, (DeviceAddress, unsigned char, std::size_t, CudaStream))                                          \
  X(cuMemsetD2D8Async, (DeviceAddress, std::size_t, unsigned char, std::size_t, std::size_t, CudaStream))              \
  X(cuMemcpyHtoDAsync_v2, (DeviceAddress, const void*, std::size_t, CudaStream))                                       \
  X(cuMemcpyDtoHAsync_v2, (void*, DeviceAddress, std::size_t, CudaStream))                                             \
  X(cuMemcpyDtoDAsync_v2, (DeviceAddress, DeviceAddress, std::size_t, CudaStream))                                     \
  X(cuMemcpy2DAsync_v2, (const Copy2d*, CudaStream))

struct CudaDriver {
#define EECOMPILE_MEMBER(name, arguments) int(*name) arguments = nullptr;
  EECOMPILE_CUDA(EECOMPILE_MEMBER)
#undef EECOMPILE_MEMBER
};

// The functions of libcuda.so.1, which stays loaded; null, and why, where it is not there or lacks one.
const CudaDriver* load_cuda_driver(std::string& reason);

}  // namespace eecompile
