#include <fmt/format.h>

#include <memory>
#include <string>

#include "checkpoint/model_export.h"
#include "launch/command.h"

namespace scone {
namespace {

struct Arguments {
  std::string path, out, format;
};

int run_export(const Arguments& arguments, CommandContext& context) {
  if (!context.is_root()) return 0;
  const ExportResult result = export_model(arguments.path, arguments.out);
  for (const std::string& skipped : result.skipped)
    fmt::print(stderr, "warning: skipped {}\n", skipped);
  if (!context.json) {
    fmt::print("Exported {} (step {}, {} parameters) into {}\n", result.checkpoint.string(),
               result.step, result.parameters, arguments.out);
  }
  context.print_result({{"out", arguments.out},
                        {"checkpoint", result.checkpoint.string()},
                        {"step", result.step},
                        {"parameters", result.parameters}});
  return 0;
}

}  // namespace

void add_export(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand(
      "export",
      "Checkpoint -> safetensors of the main and the f-gram model, named as in Hugging Face's "
      "Llama family, with config.json, tokenizer and f-gram vocabulary.");
  command
      ->add_option("path", arguments->path,
                   "Run folder (its newest valid checkpoint), checkpoints folder or checkpoint")
      ->required();
  command->add_option("--format", arguments->format, "safetensors")
      ->required()
      ->check(CLI::IsMember({"safetensors"}));
  command->add_option("--out", arguments->out, "Folder to make")->required();
  command->callback([arguments, &action] {
    action = [arguments](CommandContext& context) { return run_export(*arguments, context); };
  });
}

}  // namespace scone
