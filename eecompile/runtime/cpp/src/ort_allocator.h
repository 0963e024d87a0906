// The memory that ONNX Runtime takes on the CPU: weights in large pages, the rest kept from pass to pass.
#pragma once

struct OrtApi;
struct OrtEnv;
struct OrtStatus;

namespace eecompile {

// While one lives, what this thread's calls reserve are weights, which stay; else it goes with a pass.
class TakesWeights {
 public:
  TakesWeights();
  TakesWeights(const TakesWeights&) = delete;
  TakesWeights& operator=(const TakesWeights&) = delete;
  ~TakesWeights();
};

// Registers it with the process's environment; sessions take part by `session.use_env_allocators`. It lives as long as
// the process. Null, or what the library refused it with.
OrtStatus* register_allocator(const OrtApi& api, OrtEnv* environment);

}  // namespace eecompile
