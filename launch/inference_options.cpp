#include "launch/inference_options.h"

#include "data/size_suffix.h"

namespace scone {

void add_device_option(CLI::App& command, std::string& device) {
  command.add_option("--device", device, "cpu, or cuda: each rank a GPU of its node")
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
          .cache_bytes = parse_size(cache)};
}

void add_table_options(CLI::App& command, TableArguments& arguments) {
  command
      .add_option("--table-access", arguments.access,
                  "How a bundle's rows are read: mmap; ram: read whole at the start; direct: from "
                  "the disk past the page cache")
      ->check(CLI::IsMember({"ram", "mmap", "direct"}))
      ->capture_default_str();
  command
      .add_option("--table-cache", arguments.cache,
                  "direct: RAM for the rows of the most frequent f-grams")
      ->capture_default_str();
  command.add_option("--table-queue-depth", arguments.queue_depth, "direct: reads in flight")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
}

}  // namespace scone
