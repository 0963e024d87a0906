// What the doubles of libcuda and libnvinfer share: they are one library, opened by both names.
//
// Work put into a stream is done when somebody waits for it and not before, and memory is full of NaN until it is
// written, so that whoever reads too early reads NaN. What the real thing leaves undefined ends the process.
// EECOMPILE_DOUBLE sets them up: "name=value,name=value".
#pragma once

#include <cuda.h>

#include <cstddef>
#include <functional>
#include <map>
#include <mutex>
#include <string>

namespace doubles {

[[noreturn]] void broken(const std::string& what);
std::string setting(const std::string& name, const std::string& otherwise);
void count(const std::string& what);  // reported in the file that the setting "report" names, where the context goes

using Lock = std::unique_lock<std::recursive_mutex>;
Lock locked();
void in_context(const std::string& what);

// kind: of the node that it is in a graph; in the body of a branch none but "kernel" and "memcpy" are allowed.
void add_work(CUstream stream, std::function<void()> work, const std::string& kind = "kernel");
bool captured(CUstream stream);
void not_capturing(const std::string& what);
std::size_t streams_and_graphs();

// What graphs with branches are made of: a capture behind a graph's last node, which `after` has to be; conditions, 0 when
// their graph is launched, that its kernels set; branches, each behind what sets its condition.
using Condition = unsigned long long;
void begin_into(CUstream stream, CUgraph graph, CUgraphNode after);
CUgraphNode last_node(CUstream stream);  // of the graph that is captured; null where none is
Condition new_condition(CUgraph graph);
void set_condition(Condition condition, bool value);
CUgraphNode add_branch(CUgraph graph, CUgraphNode after, Condition condition, CUgraph* body);

void inside(const void* data, std::size_t bytes, bool pinned_too);

extern int contexts;  // of engines, alive

}  // namespace doubles

#define REFUSED(function)                                                           \
  if (doubles::setting("refuse", "") == function) return CUDA_ERROR_UNKNOWN;        \
  doubles::count(function)
