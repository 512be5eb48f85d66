#include "launch/inference_options.h"

#include <fmt/format.h>

#include "data/size_suffix.h"
#include "parallel/error.h"

namespace scone {

void add_device_option(CLI::App& command, std::string& device) {
  command.add_option("--device", device, "cpu, or cuda: a GPU for each rank")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
}

ComputeDevice open_inference_device(const std::string& device, Communicator& world) {
  RunConfig config;
  config.compute.device = device == "cuda" ? Device::cuda : Device::cpu;
  return open_compute_device(config, world);
}

RowSourceOptions TableArguments::options() const {
  return {.access = table_access_of(access),
          .queue_depth = queue_depth,
          .cache_bytes = parse_size_option("--table-cache", cache)};
}

void TableArguments::check_use(const LoadedModel& model) const {
  if (model.kind == "bundle") return;
  for (const CLI::Option* option : on_command_line) {
    if (option->count() > 0)
      throw InputError(fmt::format(
          "{}: is about a bundle's table, and {} is a checkpoint, whose f-gram model is "
          "live; bake it, or leave the option out",
          option->get_name(), model.path.string()));
  }
}

void add_table_options(CLI::App& command, TableArguments& arguments) {
  CLI::Option* access =
      command
          .add_option(
              "--table-access", arguments.access,
              "How a bundle's rows are read: mmap; ram: read whole at the start; direct: from "
              "the disk past the page cache")
          ->check(CLI::IsMember({"ram", "mmap", "direct"}))
          ->capture_default_str();
  CLI::Option* cache = command
                           .add_option("--table-cache", arguments.cache,
                                       "direct: RAM for the rows of the most frequent f-grams")
                           ->capture_default_str();
  CLI::Option* queue_depth =
      command.add_option("--table-queue-depth", arguments.queue_depth, "direct: reads in flight")
          ->check(CLI::Range(1, 4096))
          ->capture_default_str();
  arguments.on_command_line = {access, cache, queue_depth};
}

}  // namespace scone
