#include "checkpoint/bake.h"

#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <string>

#include "data/size_suffix.h"
#include "launch/command.h"
#include "launch/inference_options.h"
#include "launch/option_checks.h"
#include "launch/progress_line.h"

namespace scone {
namespace {

struct Arguments {
  BakeOptions options;
  std::string type = "fp32", file_size = "32G", fgrams_size = "0", device = "cpu";
};

int run_bake(Arguments& arguments, CommandContext& context) {
  arguments.options.type = row_type_of(arguments.type);
  arguments.options.vocabulary_size = parse_size_option("--fgrams-size", arguments.fgrams_size);
  arguments.options.file_bytes = parse_size_option("--file-size", arguments.file_size);
  const ComputeDevice device = open_inference_device(arguments.device, context.world);
  ProgressLine line("bake", context.world.size());
  BakeProgressReport report;
  if (context.is_root()) report = [&](const BakeProgress& progress) { line(progress); };
  const BakeResult result = bake_bundle(arguments.options, device.backend, context.world, report);
  if (!context.is_root()) return 0;
  for (const std::string& skipped : result.skipped)
    fmt::print(stderr, "warning: skipped {}\n", skipped);
  if (result.started_anew)
    fmt::print(stderr,
               "warning: {}.tmp held an unfinished bake of something else, which was removed\n",
               arguments.options.bundle.string());
  if (!result.warning.empty()) fmt::print(stderr, "warning: {}\n", result.warning);
  const std::string bundle = arguments.options.bundle.string();
  if (!context.json) {
    fmt::print("Baked {} (step {}) into {}\n", result.checkpoint.string(), result.step, bundle);
    if (result.rows > 0) {
      fmt::print("  table: {} rows of width {} in {}, {:.1f} MB, index {:.1f} MB, {:.1f} s\n",
                 result.rows, result.width, arguments.type,
                 static_cast<double>(result.table_bytes) / 1e6,
                 static_cast<double>(result.index_bytes) / 1e6, result.seconds);
      if (result.rows_kept > 0)
        fmt::print("  {} of them were finished by an earlier bake and verified\n",
                   result.rows_kept);
    } else {
      fmt::print("  a baseline: no f-gram table, {:.1f} s\n", result.seconds);
    }
  }
  context.print_result({{"bundle", bundle},
                        {"checkpoint", result.checkpoint.string()},
                        {"step", result.step},
                        {"rows", result.rows},
                        {"width", result.width},
                        {"dtype", arguments.type},
                        {"rows_kept", result.rows_kept},
                        {"table_bytes", result.table_bytes},
                        {"index_bytes", result.index_bytes},
                        {"seconds", result.seconds},
                        {"rows_per_second", static_cast<double>(result.rows) / result.seconds}});
  return 0;
}

}  // namespace

void add_bake(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand(
      "bake",
      "Checkpoint -> bundle: main model, f-gram table, tokenizer. Alone or under mpirun. One "
      "that was ended goes on where it was.");
  BakeOptions& options = arguments->options;
  command
      ->add_option("path", options.source,
                   "Run folder (its newest valid checkpoint), checkpoints folder or checkpoint")
      ->required();
  command->add_option("--out", options.bundle, "Folder of the bundle to make")->required();
  command
      ->add_option(
          "--dtype", arguments->type,
          "Type of the table's numbers: fp32, bf16, fp16 (rounded to nearest even) or int8 (with a "
          "scale a row)")
      ->capture_default_str();
  command->add_option("--fgrams", options.vocabulary,
                      "F-gram vocabulary to bake; default: the one trained with. A larger one of "
                      "the same tokenizer is fine");
  command->add_option("--fgrams-size", arguments->fgrams_size,
                      "Bake the first S f-grams of --fgrams (200K, 1M); 0: all");
  command->add_flag("--overwrite", options.overwrite, "Replace an existing bundle");
  command
      ->add_option("--block-nodes", options.block_nodes,
                   "F-grams evaluated at a time on each rank; bounds the memory")
      ->check(at_least(1))
      ->capture_default_str();
  command
      ->add_option("--file-size", arguments->file_size,
                   "Most of one file of rows (512M, 32G); there are as many as are needed")
      ->capture_default_str();
  add_device_option(*command, arguments->device);
  command->callback([arguments, &action] {
    action = [arguments](CommandContext& context) { return run_bake(*arguments, context); };
  });
}

}  // namespace scone
