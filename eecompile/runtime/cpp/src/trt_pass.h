// A pass of a TensorRT engine over fixed addresses: enqueued, then captured, then launched (trt_engines.h).
//
// Thread safety: belongs to one thread at a time, and takes turns with others on the device's stream. Cost: a context
// and a graph, from its second run on.
#pragma once

#include "trt_engine.h"

namespace eecompile {

// Where a pass's tensors lie, and what is copied over what behind it.
struct TrtPlaces {
  struct Copy {
    void* target;
    const void* source;
    std::size_t bytes;
  };
  int profile = 0;
  std::map<std::string, nvinfer1::Dims> shapes;
  std::map<std::string, void*> addresses;
  std::vector<Copy> copies;
};

std::unique_ptr<Pass> make_pass(std::shared_ptr<const TrtEngine> engine, TrtPlaces places);

}  // namespace eecompile
