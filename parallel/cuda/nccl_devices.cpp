#include "parallel/cuda/nccl_devices.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>

#include "parallel/cuda/device.h"
#include "parallel/error.h"

namespace scone {
namespace {

/// This rank's machine and device, the same text for ranks that share them.
std::string own_device() {
  std::string machine;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> machine;
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  return fmt::format("{} {} {}", host.data(), machine, cuda_device().bus_id());
}

}  // namespace

void check_one_rank_a_device(Communicator& host) {
  const std::string own = own_device();
  const auto all = host.all_gather(std::as_bytes(std::span(own)));
  std::map<std::string, std::pair<int, std::set<std::string>>> machines;  // ranks, devices
  for (const auto& bytes : all) {
    const std::string device(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    auto& [ranks, devices] = machines[device.substr(0, device.rfind(' '))];
    ++ranks;
    devices.insert(device);
  }
  for (const auto& [machine, of_machine] : machines) {
    const auto& [ranks, devices] = of_machine;
    if (static_cast<std::size_t>(ranks) > devices.size())
      throw InputError(fmt::format(
          "parallel.communicator is nccl, which needs a GPU for every rank, but node {} has {} "
          "ranks on {} GPUs: set parallel.communicator: mpi, or start {} ranks a node",
          machine.substr(0, machine.find(' ')), ranks, devices.size(), devices.size()));
  }
}

}  // namespace scone
