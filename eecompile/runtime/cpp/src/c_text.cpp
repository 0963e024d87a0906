// Text in the C interface.
#include <algorithm>

#include "c_parts.h"
#include "eecompile/text.h"

using namespace eecompile;

struct eecompile_text {
  Text text;
};

struct eecompile_stream {
  StreamDecoder decoder;
  std::string piece;
  bool over = false;
};

namespace {

// Copies as much as there is room for, and says how much there is.
template <typename List, typename Element>
std::int32_t give(const List& list, Element* target, size_t capacity, size_t* count) {
  std::copy_n(list.begin(), std::min(capacity, list.size()), target);
  *count = list.size();
  return EECOMPILE_OK;
}

constexpr char kNoPlace[] = "there is no text, nothing to read, or nowhere to put the answer";

std::int32_t next(eecompile_stream* stream, std::string piece, const char** data, size_t* bytes) {
  stream->piece = std::move(piece);
  *data = stream->piece.data();
  *bytes = stream->piece.size();
  return EECOMPILE_OK;
}

}  // namespace

std::int32_t eecompile_text_new(const eecompile_bundle* bundle, eecompile_text** text) {
  if (bundle == nullptr || text == nullptr) return fail("there is no bundle, or nowhere to put the text");
  *text = nullptr;
  return guarded([&]() -> std::int32_t {
    Result<Text> opened = Text::open(bundle->bundle);
    if (!opened.ok()) return fail(opened.status());
    *text = new eecompile_text{std::move(opened).value()};
    return EECOMPILE_OK;
  });
}

void eecompile_text_free(eecompile_text* text) { delete text; }

std::int32_t eecompile_encode(const eecompile_text* text, const char* data, size_t bytes, int64_t* ids, size_t capacity,
                              size_t* count) {
  if (text == nullptr || lacks(data, bytes) || lacks(ids, capacity) || count == nullptr) return fail(kNoPlace);
  return guarded([&] { return give(text->text.encode(std::string_view(data, bytes)), ids, capacity, count); });
}

std::int32_t eecompile_tokenize(const eecompile_text* text, const char* data, size_t bytes, const char* pair,
                                size_t pair_bytes, size_t most, eecompile_token* tokens, size_t capacity,
                                size_t* count) {
  if (text == nullptr || lacks(data, bytes) || lacks(pair, pair_bytes) || lacks(tokens, capacity) || count == nullptr)
    return fail(kNoPlace);
  return guarded([&]() -> std::int32_t {
    const auto second = pair == nullptr ? std::nullopt : std::optional(std::string(pair, pair_bytes));
    const Result<Encoding> made = text->text.encoding(std::string_view(data, bytes), second, unless_zero(most));
    if (!made.ok()) return fail(made.status());
    std::vector<eecompile_token> found;
    for (std::size_t i = 0; i < made->ids.size(); ++i)
      found.push_back({made->ids[i], made->types[i], made->spans[i].first, made->spans[i].second, made->special[i],
                       made->second[i]});
    return give(found, tokens, capacity, count);
  });
}

std::int32_t eecompile_chat(const eecompile_text* text, const eecompile_message* messages, size_t message_count,
                            int64_t* ids, size_t capacity, size_t* count) {
  if (text == nullptr || lacks(messages, message_count) || lacks(ids, capacity) || count == nullptr)
    return fail(kNoPlace);
  return guarded([&]() -> std::int32_t {
    std::vector<Message> said;
    for (std::size_t i = 0; i < message_count; ++i) {
      const eecompile_message& one = messages[i];
      if (one.role == nullptr || lacks(one.content, one.bytes)) return fail("a message has no role or no content");
      said.push_back({one.role, one.bytes == 0 ? "" : std::string(one.content, one.bytes)});
    }
    const Result<Ids> found = text->text.chat(said);
    return found.ok() ? give(*found, ids, capacity, count) : fail(found.status());
  });
}

std::int32_t eecompile_decode(const eecompile_text* text, const int64_t* ids, size_t count, char* data, size_t capacity,
                              size_t* bytes) {
  if (text == nullptr || lacks(ids, count) || lacks(data, capacity) || bytes == nullptr) return fail(kNoPlace);
  return guarded([&] { return give(text->text.decode(Ids(ids, ids + count)), data, capacity, bytes); });
}

std::int32_t eecompile_stream_new(const eecompile_text* text, eecompile_stream** stream) {
  if (text == nullptr || stream == nullptr) return fail("there is no text, or nowhere to put the stream");
  *stream = nullptr;
  return guarded([&]() -> std::int32_t {
    *stream = new eecompile_stream{text->text.stream(), "", false};
    return EECOMPILE_OK;
  });
}

std::int32_t eecompile_stream_push(eecompile_stream* stream, int64_t id, const char** data, size_t* bytes) {
  if (stream == nullptr || data == nullptr || bytes == nullptr || stream->over)
    return fail("there is no stream, it is over, or there is nowhere to put the text");
  return guarded([&] { return next(stream, stream->decoder.push(id), data, bytes); });
}

std::int32_t eecompile_stream_finish(eecompile_stream* stream, const char** data, size_t* bytes) {
  if (stream == nullptr || data == nullptr || bytes == nullptr || stream->over)
    return fail("there is no stream, it is over, or there is nowhere to put the text");
  stream->over = true;
  return guarded([&] { return next(stream, stream->decoder.finish(), data, bytes); });
}

void eecompile_stream_free(eecompile_stream* stream) { delete stream; }
