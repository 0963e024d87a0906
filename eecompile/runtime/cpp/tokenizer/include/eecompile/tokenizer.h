// Text to token ids and back, from the tokenizer.json that Hugging Face's `tokenizers` writes: the same ids.
//
// Byte-level BPE, BPE with byte fallback, WordPiece and Unigram, with their normalisers, pre-tokenisers,
// post-processors, decoders and added tokens. What is not supported is refused when the file is opened, naming it.
// Left out on purpose: the file's truncation and padding, since the runtime decides on lengths.
//
// Thread safety: a Tokenizer never changes and copies share it: any number of threads may use one. A StreamDecoder
// belongs to one thread at a time. No function throws but for std::bad_alloc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "eecompile/status.h"

namespace eecompile {

// A text, or a pair of texts, as classifiers read it. All members have an element a token. types: its kind. special:
// whether the post-processor added it. second: whether it is of the second text. spans: [begin, end) of it in its text,
// in characters; 0, 0 of a special one.
struct Encoding {
  std::vector<std::int64_t> ids, types;
  std::vector<bool> special, second;
  std::vector<std::pair<std::int64_t, std::int64_t>> spans;
};

class Tokenizer {
 public:
  // Reads a tokenizer.json. Cost: its parsing, about 0.1 s for 50,000 tokens; memory about ten times the file while it
  // is read, about twice afterwards. kIntegrity: it is not one; kUnsupported: it needs what this library does not do.
  static Result<Tokenizer> open(const std::string& path);

  // The same of the file's content; `where` names it in errors.
  static Result<Tokenizer> parse(std::string_view json, const std::string& where);

  // The ids of `text`; with `add_special` those of the file's post-processor around them. Bytes that are not UTF-8
  // count as U+FFFD, one for each longest beginning of a character, as Python's bytes.decode(errors="replace") has it.
  // Cost: linear in the text (n log n in a single long word).
  std::vector<std::int64_t> encode(std::string_view text, bool add_special = true) const;

  // The same with all that the library says of each token, of a text or of a pair. most: tokens in all, beyond which
  // the texts' ends are cut off, the longer one's first. kUnsupported for a pair where the file has two templates.
  // Cost: twice `encode`'s, and 16 bytes a byte of text.
  Result<Encoding> encoding(std::string_view text, const std::optional<std::string>& pair = {},
                            const std::optional<std::size_t>& most = {}) const;

  // The text of `ids`, without special tokens if `skip_special`; ids that stand for nothing are left out.
  std::string decode(const std::vector<std::int64_t>& ids, bool skip_special = true) const;

  // The id of a token as it stands in the file, added tokens first.
  std::optional<std::int64_t> id_of(const std::string& token) const;

  // One more than the highest id.
  std::int64_t size() const;

 private:
  friend class StreamDecoder;
  struct Parts;

  explicit Tokenizer(std::shared_ptr<const Parts> parts) : parts_(std::move(parts)) {}

  std::shared_ptr<const Parts> parts_;
};

// Ids one after the other to text. All that `push` and the one `finish` return, joined, is what `decode` returns for
// all the ids, and each of it is valid UTF-8: a character is given out when its last byte has come.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true);
  ~StreamDecoder();
  StreamDecoder(StreamDecoder&&) noexcept;
  StreamDecoder& operator=(StreamDecoder&&) noexcept;

  // The text that `id` completes; "" inside of a character. Cost: linear in the token.
  std::string push(std::int64_t id);

  // What is left: U+FFFD for a character that never became whole. Nothing may be pushed afterwards.
  std::string finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace eecompile
