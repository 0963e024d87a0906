// The decoders of tokenizer.json: ByteLevel, WordPiece, Metaspace, Fuse, ByteFallback, Replace, Strip, Sequence.
//
// Each is a stage that takes tokens one after the other and gives text out as soon as no later token can change it;
// decoding a whole list is pushing it and finishing. So a stream's text is the whole text by construction, and since
// stages give out valid UTF-8 only, no character is ever split. What comes out behind Fuse or ByteLevel are parts of
// one token; a stage that has to see that token as a whole waits for its end.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "field.h"

namespace eecompile::tok {

class Stage {
 public:
  virtual ~Stage() = default;
  virtual void push(std::string token, std::vector<std::string>& out) = 0;
  virtual void finish(std::vector<std::string>& out) { (void)out; }
};

// Makes fresh stages; safe to use from several threads.
class Decoder {
 public:
  Decoder();  // tokens with spaces between them, as the library without a decoder
  explicit Decoder(const Field& field);
  ~Decoder();
  Decoder(Decoder&&) noexcept;
  Decoder& operator=(Decoder&&) noexcept;

  std::vector<std::unique_ptr<Stage>> stages() const;

  struct Step;  // one decoder of the file

 private:
  void add(const Field& field);

  std::vector<std::unique_ptr<const Step>> steps_;
  bool spaced_ = true;
};

}  // namespace eecompile::tok
