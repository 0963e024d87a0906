// One exit's graph, bound to buffers: adapter and cheap gates over a few rows (askers.py).
//
// Thread safety: belongs to one session or batch; the engine is shared. Cost: a row's inputs and outputs for each row
// that may be asked at once, and the gates' weights.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "caches.h"
#include "engine.h"
#include "manifest.h"
#include "walk.h"

namespace eecompile {

using RowBuffers = std::map<std::string, Tensor, std::less<>>;  // by graph input or output, [rows, ..]
using Walks = std::vector<Walk*>;
using Slots = std::vector<std::size_t>;

class ExitAsker {
 public:
  // Number `exit` of the bundle's exits, over up to `rows` rows.
  ExitAsker(SharedEngine engine, const Manifest& manifest, std::size_t exit, const ExitPolicy& policy,
            std::int64_t rows);
  virtual ~ExitAsker() = default;
  ExitAsker(const ExitAsker&) = delete;
  ExitAsker& operator=(const ExitAsker&) = delete;

  // Asks about a hidden row [D] of each of `slots`, stacked. walks: what exits before said of each, which is brought up
  // to date. What is below then holds what the exit says, until it is asked again.
  virtual Status ask(const float* rows, const Walks& walks, const Slots& slots);

  // A pass of the exit's graph over buffers of one's own, with its gates' weights.
  Result<std::unique_ptr<Pass>> bind(Buffers buffers) const;

  const float* hidden() const { return hidden_out_; }  // [N, D], ready for a head
  float value(const std::string& criterion, std::size_t row) const;  // what a cheap gate goes by
  bool confirmed(std::size_t row, std::int64_t token) const;  // whether a predictor has this token as a candidate

 protected:
  RowBuffers row_buffers(std::int64_t rows) const;  // for every input and output that has rows
  void remind(const Walks& walks, RowBuffers& buffers) const;  // sets the inputs about what exits before this one said
  void note(const float* rows, const Walks& walks, const RowBuffers& buffers) const;
  void bind_weights(Buffers& buffers) const;
  void said(const Walks& walks, const RowBuffers& buffers);

  SharedEngine engine_;
  const ExitInfo& shape_;
  std::int64_t exit_, width_;
  RowBuffers buffers_;

 private:
  bool keeps_;  // whether the exit after this one compares with the rows here
  std::map<std::string, Tensor> weights_;
  std::map<std::size_t, std::unique_ptr<Pass>> bound_;
  std::vector<float> routes_;
  const float* hidden_out_ = nullptr;
};

}  // namespace eecompile
