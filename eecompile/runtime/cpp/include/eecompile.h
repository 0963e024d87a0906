/* The runtime's C interface, for other languages: token ids in, token ids out, classifications, and text to ids and back.
 *
 * Every call returns 0 or an eecompile_code; eecompile_last_error() then says what, where and how to mend it. Structs
 * begin with their size, so that a library knows what a caller of another version means: fill in sizeof (0 is refused),
 * set the rest to zero, which stands for the default. What a callback is given has the library's size: read no further
 * than that. Elements of arrays have none, and never change. Nothing throws and nothing is printed.
 *
 * Thread safety: a bundle, a classifier and a text may be shared; a session, a batch and a stream belong to one thread at
 * a time, the last error to its thread. Callbacks run in the calling thread, before the call returns; they throw nothing,
 * and neither free nor generate with what calls them.
 * Ownership: what a call makes is the caller's, who frees it with the function of that name; NULL is fine there. All of it
 * outlives its bundle if need be. What the caller gives is copied or done with when the call returns. What a
 * callback is given stays valid until it returns.
 * Cost: a bundle has the weights, a session the keys and values of one sequence; more at each call.
 */
#ifndef EECOMPILE_H
#define EECOMPILE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define EECOMPILE_API __attribute__((visibility("default")))
#else
#define EECOMPILE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define EECOMPILE_ABI 1

/* As eecompile::Code. */
enum eecompile_code {
  EECOMPILE_OK = 0,
  EECOMPILE_USAGE = 1,
  EECOMPILE_CONTEXT_FULL = 2,
  EECOMPILE_UNCALIBRATED = 3,
  EECOMPILE_MISSING_BACKEND = 4,
  EECOMPILE_INTEGRITY = 5,
  EECOMPILE_NUMERIC = 6,
  EECOMPILE_UNSUPPORTED = 7,
  EECOMPILE_CANCELLED = 8,
  EECOMPILE_INTERNAL = 9
};

typedef struct eecompile_bundle eecompile_bundle;
typedef struct eecompile_session eecompile_session;

/* threads: of the process-wide pool (0: the processors at hand). sizes_only: do not compare SHA-256 of the core's
 * files. onnxruntime: its shared library (NULL: libonnxruntime.so.1, as the loader finds it). The first bundle that a
 * process opens decides both (bundle.h). backend: "auto" (NULL), "onnxruntime", "tensorrt" or "cuda". plugin: the exit
 * decision's library, where engines call it (NULL: none). decision: who decides at exits of engines: "auto" (NULL),
 * "pinned" (the host) or "conditional" (the GPU). */
typedef struct {
  size_t size;
  int32_t threads;
  int32_t sizes_only;
  const char* onnxruntime;
  const char* backend;
  const char* plugin;
  const char* decision;
} eecompile_open_options;

/* In place of the policy's thresholds of the exit after `layer` layers, which takes one for each of its gates.
 * criterion: NULL closes the exit. */
typedef struct {
  int64_t layer;
  const char* criterion;
  double value;
} eecompile_threshold;

/* mode: "full" (NULL), "confident" or "exact". pending_cap, minimum_depth, budget: 0 as the bundle has them. kv: the
 * rule for skipped layers (NULL: catch_up, in confident mode the policy's). */
typedef struct {
  size_t size;
  const char* mode;
  int64_t pending_cap;
  int64_t minimum_depth;
  int64_t budget;
  const eecompile_threshold* thresholds;
  size_t threshold_count;
  const char* kv;
} eecompile_session_options;

/* max_new_tokens: 0 as many as the context holds. temperature 0 is greedy; top_k 0 and top_p 0 keep every token.
 * stop: ids that end the text (NULL: the model's). sled_rate: above 0, choose from logits that the exits have evolved at
 * this rate (2 is the published one), in mode full. */
typedef struct {
  size_t size;
  int64_t max_new_tokens;
  double temperature;
  int64_t top_k;
  double top_p;
  uint64_t seed;
  const int64_t* stop;
  size_t stop_count;
  double sled_rate;
} eecompile_generate_options;

/* What a request cost, as in values.h. `size` is the caller's. stop_reason: "stop", "length", "budget" or "cancelled".
 */
typedef struct {
  size_t size;
  int64_t prompt_tokens, tokens, drafted, rejected, declined, segment_passes, layer_rows;
  double prefill_seconds, decode_seconds, mean_depth;
  char stop_reason[16];
} eecompile_stats;

/* A token as it becomes certain, and the layers that ran before it was emitted. Returns 0 to end the request. */
typedef int32_t (*eecompile_on_token)(void* context, int64_t id, int64_t exit_layer);

/* EECOMPILE_ABI of the library: structs only ever grow while it stays the same. */
EECOMPILE_API int32_t eecompile_abi(void);

/* What the last call of this thread that failed has to say; valid until its next. */
EECOMPILE_API const char* eecompile_last_error(void);

EECOMPILE_API int32_t eecompile_open(const char* path, const eecompile_open_options* options,
                                     eecompile_bundle** bundle);

/* What was made of the bundle stays valid. */
EECOMPILE_API void eecompile_close(eecompile_bundle* bundle);

EECOMPILE_API int32_t eecompile_session_new(const eecompile_bundle* bundle, const eecompile_session_options* options,
                                            eecompile_session** session);
EECOMPILE_API void eecompile_session_free(eecompile_session* session);

/* Continues `count` token ids. options, on_token and stats may be NULL. What `on_token` was given before a failure
 * stands. */
EECOMPILE_API int32_t eecompile_generate(eecompile_session* session, const int64_t* prompt, size_t count,
                                         const eecompile_generate_options* options, eecompile_on_token on_token,
                                         void* context, eecompile_stats* stats);

/* -- many at once: requests that run side by side, each of which gives what it would give alone. */

typedef struct eecompile_batch eecompile_batch;

/* The token ids of a prompt. */
typedef struct {
  const int64_t* ids;
  size_t count;
} eecompile_prompt;

/* As eecompile_on_token, with the number of the request. Returns 0 to end that request. */
typedef int32_t (*eecompile_on_batch_token)(void* context, int64_t request, int64_t id, int64_t exit_layer);

/* Called once for each request that is over. fault: "", or where `code` is not 0, what eecompile_last_error() would say. */
typedef void (*eecompile_on_end)(void* context, int64_t request, int32_t code, const char* fault,
                                 const eecompile_stats* stats);

/* Continues `prompt_count` prompts, `slots` of them at once (0: as many as the bundle has slots for, at most 8), in order
 * as slots fall free. A request's number is its prompt's. All of them end after the last one's last token. One that cannot
 * be served ends with its fault, and the others go on; where the call itself fails none ends. options, on_token and
 * on_end may be NULL. Cost: in each slot the keys and values of the longest, while it runs. */
EECOMPILE_API int32_t eecompile_generate_many(eecompile_session* session, const eecompile_prompt* prompts,
                                              size_t prompt_count, size_t slots,
                                              const eecompile_generate_options* options,
                                              eecompile_on_batch_token on_token, eecompile_on_end on_end,
                                              void* context);

/* What one request has in place of its batch's options; NULL and 0 as the batch has it. */
typedef struct {
  size_t size;
  const char* mode;
  int64_t minimum_depth;
  int64_t budget;
} eecompile_request_options;

/* A batch to which requests are added while it runs. It belongs to one thread at a time. Cost: as eecompile_generate_many,
 * and slots that were used keep their memory until the batch is freed or all of them are short again. */
EECOMPILE_API int32_t eecompile_batch_new(const eecompile_bundle* bundle, const eecompile_session_options* options,
                                          size_t slots, eecompile_batch** batch);
EECOMPILE_API void eecompile_batch_free(eecompile_batch* batch);

/* Queues a request, which runs from the next step on that has a slot for it; *request is its number, counted from 0.
 * Fails for one that cannot be served. Callbacks may call this. */
EECOMPILE_API int32_t eecompile_batch_add(eecompile_batch* batch, const int64_t* prompt, size_t count,
                                          const eecompile_generate_options* options,
                                          const eecompile_request_options* own, int64_t* request);

/* Runs a part of the prompts that are not through yet, as much as one pass holds, and one token of every other request;
 * then tells which are over. *busy: whether any is not. on_token, on_end and busy may be NULL. Where this fails the batch
 * has: what was not over never ends, and it can only be freed. */
EECOMPILE_API int32_t eecompile_batch_step(eecompile_batch* batch, eecompile_on_batch_token on_token,
                                           eecompile_on_end on_end, void* context, int32_t* busy);

/* Ends a request, which the next step tells ("cancelled"); of one that is over already, nothing. */
EECOMPILE_API int32_t eecompile_batch_cancel(eecompile_batch* batch, int64_t request);

/* Slots that no request has or waits for; 0 of a batch that has failed. */
EECOMPILE_API size_t eecompile_batch_free_slots(const eecompile_batch* batch);

/* -- text: a bundle's tokenizer and chat template.
 *
 * Texts are UTF-8 of `bytes` bytes, without a zero at their end; bytes that are none count as U+FFFD. Calls that fill an
 * array write at most `capacity` elements and say in *count or *bytes how many there are: where that is more, the call
 * is to be made again with as much room (NULL and 0 just ask). */

typedef struct eecompile_text eecompile_text;
typedef struct eecompile_stream eecompile_stream;

/* role: "system", "user" or "assistant", with a zero at its end. */
typedef struct {
  const char* role;
  const char* content;
  size_t bytes;
} eecompile_message;

/* Reads the tokenizer, which takes about 0.1 s for 50,000 tokens. */
EECOMPILE_API int32_t eecompile_text_new(const eecompile_bundle* bundle, eecompile_text** text);
EECOMPILE_API void eecompile_text_free(eecompile_text* text);

/* The ids of a text as it is, with the tokenizer's own special tokens. */
EECOMPILE_API int32_t eecompile_encode(const eecompile_text* text, const char* data, size_t bytes, int64_t* ids,
                                       size_t capacity, size_t* count);

/* A token as classifiers read it. type: its kind (0 where there are none). begin, end: where it stands in its text, in
 * characters. special: it stands for no text, and no text waits for it. second: it is of the second text of a pair. Of
 * tokens that a caller makes itself the id will do. */
typedef struct {
  int64_t id, type, begin, end;
  int32_t special, second;
} eecompile_token;

/* The tokens of a text, or of a pair of texts (pair: NULL for none), with the tokenizer's own special tokens. most:
 * tokens in all, beyond which the texts' ends are cut off, the longer one's first (0: none is). */
EECOMPILE_API int32_t eecompile_tokenize(const eecompile_text* text, const char* data, size_t bytes, const char* pair,
                                         size_t pair_bytes, size_t most, eecompile_token* tokens, size_t capacity,
                                         size_t* count);

/* The ids of a conversation in the model's chat template, ready for the assistant's turn. */
EECOMPILE_API int32_t eecompile_chat(const eecompile_text* text, const eecompile_message* messages,
                                     size_t message_count, int64_t* ids, size_t capacity, size_t* count);

/* The text of ids, without special tokens. */
EECOMPILE_API int32_t eecompile_decode(const eecompile_text* text, const int64_t* ids, size_t count, char* data,
                                       size_t capacity, size_t* bytes);

/* Ids one after the other to text, which is never cut inside of a character; belongs to one thread at a time. What `push`
 * gives for an id, and `finish` for what is left, stays valid until the stream's next call. */
EECOMPILE_API int32_t eecompile_stream_new(const eecompile_text* text, eecompile_stream** stream);
EECOMPILE_API int32_t eecompile_stream_push(eecompile_stream* stream, int64_t id, const char** data, size_t* bytes);
EECOMPILE_API int32_t eecompile_stream_finish(eecompile_stream* stream, const char** data, size_t* bytes);
EECOMPILE_API void eecompile_stream_free(eecompile_stream* stream);

/* -- classification, for bundles of encoders. */

typedef struct eecompile_classifier eecompile_classifier;

/* mode: "full" (NULL) or "confident". granularity: what leaves a batch on its own, "sentence" (a text) or, where each
 * token has a label, "token" (NULL: as calibrated). minimum_depth, budget (layer-rows of a text at full depth): 0 as the
 * bundle has them. */
typedef struct {
  size_t size;
  const char* mode;
  const char* granularity;
  int64_t minimum_depth;
  int64_t budget;
  const eecompile_threshold* thresholds;
  size_t threshold_count;
} eecompile_classifier_options;

/* A text to classify. */
typedef struct {
  const eecompile_token* tokens;
  size_t count;
} eecompile_tokens;

/* What a text was classified as, or one of its tokens. text: its number. place: which of its tokens; -1 the text itself.
 * id: the token's, else -1. label: its number, and `name`; where each token has a label, the text's own are -1 and
 * "". scores: probabilities in the order of the labels (a regression: its value). exit_layer: layers that were run
 * before it was answered; of a text whose tokens have labels, the deepest one's. */
typedef struct {
  size_t size;
  size_t text;
  int64_t place, id, label, exit_layer;
  const char* name;
  const double* scores;
  size_t score_count;
} eecompile_answer;

/* Called for every text in order, and before it for its tokens where each has a label, special ones left out. */
typedef void (*eecompile_on_answer)(void* context, const eecompile_answer* answer);

/* What a request cost, as in classifier.h. `size` is the caller's. */
typedef struct {
  size_t size;
  int64_t texts, tokens, segment_passes, layer_rows, frozen_rows;
  double seconds, mean_depth;
} eecompile_classify_stats;

/* The name of label number `number`, valid until the bundle is closed; NULL beyond the last one. A bundle without labels
 * generates text. */
EECOMPILE_API const char* eecompile_label(const eecompile_bundle* bundle, size_t number);

EECOMPILE_API int32_t eecompile_classifier_new(const eecompile_bundle* bundle,
                                               const eecompile_classifier_options* options,
                                               eecompile_classifier** classifier);
EECOMPILE_API void eecompile_classifier_free(eecompile_classifier* classifier);

/* Classifies `count` texts, `batch` at a time (0: 32), sorted by length. stats may be NULL. Nothing is answered where one
 * of them cannot be. Cost: a batch's hidden states, what one pass takes, and all answers. */
EECOMPILE_API int32_t eecompile_classify(const eecompile_classifier* classifier, const eecompile_tokens* texts,
                                         size_t count, size_t batch, eecompile_on_answer on_answer, void* context,
                                         eecompile_classify_stats* stats);

#ifdef __cplusplus
}
#endif

#endif
