// In the place of the vendor's header, which no registry has: as much of its interfaces as is called.
#pragma once

#include <NvInfer.h>

#define NV_ONNX_PARSER_VERSION 100

namespace nvonnxparser {

class IParserError {
 public:
  virtual ~IParserError() = default;
  virtual const char* desc() const = 0;
  virtual const char* nodeName() const = 0;
  virtual const char* nodeOperator() const = 0;
};

class IParser {
 public:
  virtual ~IParser() = default;
  virtual bool parseFromFile(const char* file, int verbosity) noexcept = 0;
  virtual int getNbErrors() const noexcept = 0;
  virtual const IParserError* getError(int index) const noexcept = 0;
};

class IParserRefitter {
 public:
  virtual ~IParserRefitter() = default;
  virtual bool refitFromFile(const char* file) noexcept = 0;
  virtual int getNbErrors() const noexcept = 0;
  virtual const IParserError* getError(int index) const noexcept = 0;
};

}  // namespace nvonnxparser
