#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "data/size_suffix.h"
#include "launch/command.h"
#include "launch/inference_options.h"
#include "parallel/error.h"
#include "trainer/evaluation.h"
#include "trainer/loaded_model.h"

namespace scone {
namespace {

struct Arguments {
  std::string path;
  std::vector<std::string> data;
  std::string tokens = "0";
  std::string fgrams, device = "cpu";
  TableArguments table;
  std::int64_t sequence_length = 0;
  std::int64_t microbatch_sequences = 8;
};

int run_eval(const Arguments& arguments, CommandContext& context) {
  if (arguments.sequence_length < 0)
    throw InputError(
        fmt::format("--sequence-length {}: expected at least 1, or 0 for the training's",
                    arguments.sequence_length));
  const ComputeDevice device = open_inference_device(arguments.device, context.world);
  const TokenCorpus corpus({arguments.data.begin(), arguments.data.end()});
  LoadedModel model = load_model(arguments.path, device.backend, arguments.microbatch_sequences,
                                 arguments.fgrams, *device.world, arguments.table.options());
  arguments.table.check_use(model);
  const std::int64_t length =
      arguments.sequence_length > 0 ? arguments.sequence_length : model.sequence_length;
  if (length > model.config.main.context)
    throw InputError(fmt::format("--sequence-length {}: the model's context is {}", length,
                                 model.config.main.context));
  if (corpus.tokenizer_fingerprint() != model.tokenizer_fingerprint)
    throw InputError(
        fmt::format("{}: tokenized with tokenizer {}, but {} was trained with {}; tokenize the "
                    "text with the model's ({})",
                    arguments.data.front(), corpus.tokenizer_fingerprint(), model.path.string(),
                    model.tokenizer_fingerprint, model.tokenizer_path.string()));
  const auto token_bytes = token_byte_lengths(*load_corpus_tokenizer(corpus));
  const EvaluationResult result =
      evaluate(corpus, model.matcher.get(), *model.main_model, model.source.get(),
               model.config.main.width, token_bytes,
               {.sequence_length = length,
                .microbatch_sequences = arguments.microbatch_sequences,
                .tokens = parse_size_option("--tokens", arguments.tokens),
                .attention_across_documents = model.attention_across_documents},
               *device.world, model.grids->main);
  const char* rows = !model.source ? "none" : model.kind == "bundle" ? "table" : "live";
  if (context.is_root() && !context.json)
    fmt::print(
        "{} (step {}, f-gram rows: {})\n"
        "  loss {:.6f}   perplexity {:.3f}   bits/byte {:.4f}\n"
        "  {} tokens predicted, {:.1f} % of them from a position that took an f-gram row, {:.0f} "
        "tokens/s\n",
        model.path.string(), model.step, rows, result.loss, result.perplexity, result.bits_per_byte,
        result.tokens,
        100.0 * static_cast<double>(result.matched) / static_cast<double>(result.tokens),
        static_cast<double>(result.tokens) / result.seconds);
  context.print_result({{"loss", result.loss},
                        {"perplexity", result.perplexity},
                        {"bits_per_byte", result.bits_per_byte},
                        {"tokens", result.tokens},
                        {"matched", result.matched},
                        {"bytes", result.bytes},
                        {"rows", rows},
                        {"kind", model.kind},
                        {"path", model.path.string()},
                        {"data", arguments.data},
                        {"most_tokens", parse_size_option("--tokens", arguments.tokens)},
                        {"step", model.step},
                        {"seconds", result.seconds}});
  return 0;
}

}  // namespace

void add_eval(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand(
      "eval",
      "Loss, perplexity and bits per byte of a checkpoint (f-gram model live) or a bundle "
      "(table). Alone or under mpirun.");
  command->add_option("path", arguments->path, "Run folder, checkpoint or bundle")->required();
  command->add_option("--data", arguments->data, "Token shards: files or folders")->required();
  command->add_option("--tokens", arguments->tokens, "Only the first N tokens (512K, 1M); 0: all");
  command->add_option("--fgrams", arguments->fgrams,
                      "Another f-gram vocabulary for a checkpoint's live f-gram model");
  add_device_option(*command, arguments->device);
  add_table_options(*command, arguments->table);
  command->add_option("--sequence-length", arguments->sequence_length,
                      "Tokens of a window; 0: the training's");
  command
      ->add_option("--microbatch-sequences", arguments->microbatch_sequences,
                   "Sequences computed at once")
      ->check(CLI::Range(std::int64_t{1}, most_lookup_sequences))
      ->capture_default_str();
  command->callback([arguments, &action] {
    action = [arguments](CommandContext& context) { return run_eval(*arguments, context); };
  });
}

}  // namespace scone
