#include "ort_allocator.h"

#include <memory>

#include <onnxruntime_c_api.h>

#include "scratch_memory.h"
#include "weights_memory.h"

namespace eecompile {
namespace {

thread_local bool takes_weights = false;

struct Allocator : OrtAllocator {
  WeightsMemory weights;
  ScratchMemory scratch;
  OrtMemoryInfo* info = nullptr;
};

Allocator& own(OrtAllocator* one) { return *static_cast<Allocator*>(one); }

void* for_pass(OrtAllocator* one, std::size_t bytes) { return own(one).scratch.take(bytes); }

// Weights as kernels want them are reserved, and passes reserve as well.
void* reserved(OrtAllocator* one, std::size_t bytes) {
  return takes_weights ? own(one).weights.take(bytes) : for_pass(one, bytes);
}

void give_back(OrtAllocator* one, void* block) {
  if (block != nullptr && !own(one).weights.give(block)) own(one).scratch.give(block);
}

const OrtMemoryInfo* info_of(const OrtAllocator* one) { return static_cast<const Allocator*>(one)->info; }

}  // namespace

TakesWeights::TakesWeights() { takes_weights = true; }
TakesWeights::~TakesWeights() { takes_weights = false; }

OrtStatus* register_allocator(const OrtApi& api, OrtEnv* environment) {
  auto made = std::make_unique<Allocator>();
  made->version = ORT_API_VERSION;
  made->Alloc = for_pass;
  made->Free = give_back;
  made->Info = info_of;
  made->Reserve = reserved;
  if (OrtStatus* status = api.CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &made->info)) return status;
  if (OrtStatus* status = api.RegisterAllocator(environment, made.get())) {
    api.ReleaseMemoryInfo(made->info);
    return status;
  }
  made.release();  // the library keeps it
  return nullptr;
}

}  // namespace eecompile
