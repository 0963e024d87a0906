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
#include <string>

namespace doubles {

[[noreturn]] void broken(const std::string& what);
std::string setting(const std::string& name, const std::string& otherwise);
void count(const std::string& what);  // reported in the file that the setting "report" names, where the context goes

void add_work(CUstream stream, std::function<void()> work);
bool captured(CUstream stream);
void not_capturing(const std::string& what);
void inside(const void* data, std::size_t bytes, bool pinned_too);

extern int contexts;  // of engines, alive

}  // namespace doubles
