// Training steps of llm.c's train_gpt2.c on random weights and tokens, beside `scone bench step`.
// llm.c is not part of this project: give its folder when compiling,
//
//   cc -Ofast -fopenmp -march=native -I LLM_C_FOLDER tests/peers/llmc_step.c -o llmc_step -lm
//   OMP_NUM_THREADS=2 ./llmc_step WIDTH LAYERS HEADS CONTEXT BATCH ROUNDS
//
// Prints one line of JSON: tokens/s of the median step after two that warm up.
#define TESTING
#include "train_gpt2.c"

enum {
  kVocabulary = 50257,
  kPaddedVocabulary = 50304,
  kMagic = 20240326,
  kVersion = 3,
  kHeaderInts = 256
};

static int compare_doubles(const void* a, const void* b) {
  const double difference = *(const double*)a - *(const double*)b;
  return (difference > 0) - (difference < 0);
}

/// A checkpoint in llm.c's own format, of small random weights.
static void write_checkpoint(const char* path, const GPT2Config* config) {
  int header[kHeaderInts] = {kMagic,
                             kVersion,
                             config->max_seq_len,
                             config->vocab_size,
                             config->num_layers,
                             config->num_heads,
                             config->channels,
                             config->padded_vocab_size};
  size_t sizes[NUM_PARAMETER_TENSORS], count = 0;
  fill_in_parameter_sizes(sizes, *config);
  for (int i = 0; i < NUM_PARAMETER_TENSORS; ++i) count += sizes[i];
  FILE* file = fopen(path, "wb");
  if (file == NULL) exit(1);
  fwrite(header, sizeof(int), kHeaderInts, file);
  unsigned state = 1;
  for (size_t i = 0; i < count; ++i) {
    state = state * 1664525U + 1013904223U;
    const float value = ((float)(state >> 8) / 16777216.0F - 0.5F) * 0.07F;
    fwrite(&value, sizeof(value), 1, file);
  }
  if (fclose(file) != 0) exit(1);
}

int main(int argc, char** argv) {
  if (argc != 7) {
    fprintf(stderr, "usage: %s WIDTH LAYERS HEADS CONTEXT BATCH ROUNDS\n", argv[0]);
    return 2;
  }
  const int context = atoi(argv[4]), batch = atoi(argv[5]), rounds = atoi(argv[6]);
  const GPT2Config config = {.max_seq_len = context,
                             .vocab_size = kVocabulary,
                             .padded_vocab_size = kPaddedVocabulary,
                             .num_layers = atoi(argv[2]),
                             .num_heads = atoi(argv[3]),
                             .channels = atoi(argv[1])};
  char path[] = "/tmp/llmc_step.XXXXXX";
  if (mkstemp(path) < 0) return 1;
  write_checkpoint(path, &config);
  stdout = stderr;  // llm.c prints the sizes of the model there
  GPT2 model;
  gpt2_build_from_checkpoint(&model, path);
  remove(path);
  const size_t tokens = (size_t)batch * (size_t)context;
  int* inputs = malloc(2 * tokens * sizeof(int));
  double* seconds = malloc((size_t)rounds * sizeof(double));
  unsigned state = 1;
  for (size_t i = 0; i < 2 * tokens; ++i) {
    state = state * 1664525U + 1013904223U;
    inputs[i] = (int)((state >> 8) % kVocabulary);
  }
  for (int round = -2; round < rounds; ++round) {
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    gpt2_forward(&model, inputs, inputs + tokens, (size_t)batch, (size_t)context);
    gpt2_zero_grad(&model);
    gpt2_backward(&model);
    gpt2_update(&model, 1e-4F, 0.9F, 0.95F, 1e-8F, 0.1F, round + 3);
    clock_gettime(CLOCK_MONOTONIC, &end);
    if (round >= 0)
      seconds[round] =
          (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) * 1e-9;
  }
  qsort(seconds, (size_t)rounds, sizeof(double), compare_doubles);
  dprintf(1, "{\"tokens_per_second\": %.3f, \"loss\": %.4f}\n",
          (double)tokens / seconds[rounds / 2], (double)model.mean_loss);
  return 0;
}
