// What the runtime asks of a back end: engines that bind graphs to buffers, and the memory that those buffers lie in
// (engines/interface.py).
//
// The host writes and reads the small tensors of a pass (rows, positions, decisions) and never touches caches: a GPU
// keeps the former where both sides see them, and the latter in its own memory.
// Thread safety: engines and memories may be shared by any number of threads; a pass belongs to one at a time. A pass
// goes before its engine and before the buffers that it is bound to. Cost: an engine holds its graph's weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "clock.h"
#include "eecompile/status.h"
#include "manifest.h"

namespace eecompile {

// A contiguous tensor that somebody else owns. dtype: as the manifest writes it.
struct Buffer {
  void* data = nullptr;
  std::string dtype;
  std::vector<std::int64_t> shape;

  std::size_t bytes() const;
};
using Buffers = std::map<std::string, Buffer, std::less<>>;

std::size_t element_bytes(std::string_view dtype);

// An address in a memory, which is given back when the last copy goes; it may outlive whoever gave it.
using Block = std::shared_ptr<std::byte>;

// Where buffers of passes lie. What it gives is aligned as every back end wants it. Its functions throw std::bad_alloc,
// or std::runtime_error where a device fails; what is public catches them.
class Memory {
 public:
  virtual ~Memory() = default;

  virtual std::int64_t length() const { return 0; }  // T of every cache, whatever it holds; 0 where caches grow
  virtual std::string gpu() const { return ""; }     // the name of the GPU that passes run on, if any

  virtual Block rows(std::size_t bytes) = 0;  // zeros that both the host and passes read and write
  // A copy of what is at `data`, where passes read it fast; not to be changed.
  virtual Block constant(const void* data, std::size_t bytes) = 0;
  virtual Block cache(std::size_t bytes) = 0;  // zeros that passes alone read and write, where length() is not 0

  // Of a cache [slots, KV, T, ..]: makes the first `rows` rows of a slot zeros again; copies them over another's.
  virtual void clear(const Buffer& cache, std::int64_t slot, std::int64_t rows) = 0;
  virtual void move(const Buffer& cache, std::int64_t source, std::int64_t target, std::int64_t rows) = 0;
};

// The process's own memory: engines read and write the very bytes that the host does.
std::shared_ptr<Memory> host_memory();

// Counts the time of passes: each run of one has a clock while it works. A pass may run another: the outer one counts.
class PassClock {
 public:
  PassClock();
  ~PassClock();
  PassClock(const PassClock&) = delete;
  PassClock& operator=(const PassClock&) = delete;

  static double seconds();  // that this thread has spent in passes

 private:
  Clock::time_point began_;
};

// A graph bound to buffers of fixed shapes and addresses. Running it is one pass; when it returns, the buffers hold the
// result.
class Pass {
 public:
  Pass() = default;
  Pass(const Pass&) = delete;
  Pass& operator=(const Pass&) = delete;
  virtual ~Pass() = default;

  virtual Status run() = 0;
};

// A loaded graph.
class Engine {
 public:
  Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  virtual ~Engine() = default;

  virtual const GraphInfo& info() const = 0;
  virtual const std::shared_ptr<Memory>& memory() const = 0;

  // Binds buffers of memory() by tensor name. Every input needs one; outputs without are not computed into anything.
  virtual Result<std::unique_ptr<Pass>> bind(const Buffers& buffers) const = 0;
};
using SharedEngine = std::shared_ptr<const Engine>;
using LoadEngine = std::function<Result<SharedEngine>(const GraphInfo&)>;  // loads one of a bundle's graphs

}  // namespace eecompile
