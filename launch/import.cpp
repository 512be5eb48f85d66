#include <fmt/format.h>

#include <memory>
#include <string>

#include "checkpoint/model_export.h"
#include "launch/command.h"

namespace scone {
namespace {

struct Arguments {
  std::string path, out;
};

int run_import(const Arguments& arguments, CommandContext& context) {
  if (!context.is_root()) return 0;
  const std::string checkpoint = import_model(arguments.path, arguments.out).string();
  if (!context.json) {
    fmt::print("Imported {} as {}; `scone train RUN.yaml run.folder={}` begins with it\n",
               arguments.path, checkpoint, arguments.out);
  }
  context.print_result({{"checkpoint", checkpoint}, {"run", arguments.out}});
  return 0;
}

}  // namespace

void add_import(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand(
      "import",
      "A folder of `scone export` -> the first checkpoint of a new run: its weights, no step done. "
      "The run's data may be other, of the same tokenizer.");
  command->add_option("path", arguments->path, "Folder of scone export; it must stay")->required();
  command->add_option("--out", arguments->out, "Run folder to make")->required();
  command->callback([arguments, &action] {
    action = [arguments](CommandContext& context) { return run_import(*arguments, context); };
  });
}

}  // namespace scone
