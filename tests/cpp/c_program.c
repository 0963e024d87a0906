/* Classifies, or runs prompts side by side: what a program in C sees of the interface. BUNDLE ONNXRUNTIME */
#include <eecompile.h>
#include <stdio.h>
#include <string.h>

static int32_t on_token(void* context, int64_t request, int64_t id, int64_t exit_layer) {
  (void)exit_layer;
  ++*(long*)context;
  printf("token %ld %ld\n", (long)request, (long)id);
  return 1;
}

static void on_end(void* context, int64_t request, int32_t code, const char* fault, const eecompile_stats* stats) {
  (void)context;
  printf("end %ld %d %s %ld [%s]\n", (long)request, (int)code, stats->stop_reason, (long)stats->tokens, fault);
}

static void on_answer(void* context, const eecompile_answer* answer) {
  (void)context;
  printf("answer %lu %ld %ld %s\n", (unsigned long)answer->text, (long)answer->place, (long)answer->label, answer->name);
}

static int failed(const char* what) {
  fprintf(stderr, "%s: %s\n", what, eecompile_last_error());
  return 1;
}

static int classify(const eecompile_bundle* bundle) {
  eecompile_classifier* classifier = NULL;
  eecompile_classify_stats stats;
  eecompile_token tokens[3];
  eecompile_tokens texts[2];
  size_t i;
  memset(&stats, 0, sizeof stats);
  memset(tokens, 0, sizeof tokens);
  stats.size = sizeof stats;
  for (i = 0; i < 3; ++i) tokens[i].id = 5 + (int64_t)i;
  texts[0].tokens = tokens, texts[0].count = 3;
  texts[1].tokens = tokens, texts[1].count = 1;
  if (eecompile_classifier_new(bundle, NULL, &classifier) != EECOMPILE_OK) return failed("classifier");
  if (eecompile_classify(classifier, texts, 2, 0, on_answer, NULL, &stats) != EECOMPILE_OK) return failed("classify");
  eecompile_classifier_free(classifier);
  return stats.texts == 2 ? 0 : 1;
}

static int generate(const eecompile_bundle* bundle) {
  const int64_t first[] = {3, 1, 4}, second[] = {1, 5};
  eecompile_batch* batch = NULL;
  eecompile_generate_options options;
  int64_t number = -1;
  int32_t busy = 1;
  long tokens = 0;
  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  options.max_new_tokens = 4;
  if (eecompile_batch_new(bundle, NULL, 0, &batch) != EECOMPILE_OK) return failed("batch");
  if (eecompile_batch_add(batch, first, 3, &options, NULL, &number) != EECOMPILE_OK) return failed("add");
  while (busy) {
    if (eecompile_batch_step(batch, on_token, on_end, &tokens, &busy) != EECOMPILE_OK) return failed("step");
    if (tokens == 2 && number == 0 && eecompile_batch_add(batch, second, 2, &options, NULL, &number) != EECOMPILE_OK)
      return failed("join");
  }
  eecompile_batch_free(batch);
  return 0;
}

int main(int count, char** words) {
  eecompile_open_options options;
  eecompile_bundle* bundle = NULL;
  int status;
  if (count != 3 || eecompile_abi() != EECOMPILE_ABI) return 2;
  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  options.threads = 1;
  options.onnxruntime = words[2];
  if (eecompile_open(words[1], &options, &bundle) != EECOMPILE_OK) return failed("open");
  status = eecompile_label(bundle, 0) == NULL ? generate(bundle) : classify(bundle);
  eecompile_close(bundle);
  return status;
}
