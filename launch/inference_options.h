#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "checkpoint/table/row_source.h"
#include "parallel/communicator.h"
#include "trainer/compute_device.h"
#include "trainer/loaded_model.h"

namespace scone {

/// --device cpu|cuda.
void add_device_option(CLI::App& command, std::string& device);
/// Opens it on each rank. Collective over `world`, which must outlive the result. Throws
/// InputError where the build or the machine has no such device.
ComputeDevice open_inference_device(const std::string& device, Communicator& world);

/// How a bundle's table is read, as given on the command line.
struct TableArguments {
  std::string access = "mmap", cache = "64Mi";
  int queue_depth = RowSourceOptions{}.queue_depth;
  std::vector<const CLI::Option*> on_command_line;  // where their counts stand
  /// Throws InputError.
  RowSourceOptions options() const;
  /// Throws InputError where one was given for a checkpoint, which has no table.
  void check_use(const LoadedModel& model) const;
};
/// --table-access, --table-cache, --table-queue-depth.
void add_table_options(CLI::App& command, TableArguments& arguments);

}  // namespace scone
