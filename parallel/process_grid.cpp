#include "parallel/process_grid.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <span>

#include "parallel/error.h"

namespace scone {
namespace {

std::string nearest_divisors(int ranks, int wanted) {
  int below = wanted - 1, above = wanted + 1;
  while (below >= 1 && (below > ranks || ranks % below != 0)) --below;
  while (above <= ranks && (above < 1 || ranks % above != 0)) ++above;
  if (below < 1) return fmt::format("the nearest valid value is {}", above);
  if (above > ranks) return fmt::format("the nearest valid value is {}", below);
  return fmt::format("the nearest valid values are {} and {}", below, above);
}

/// Whether the group's ranks have more than one host name.
bool has_several_hosts(Communicator& group) {
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  const auto hosts = group.all_gather(std::as_bytes(std::span(host)));
  return std::any_of(hosts.begin(), hosts.end(), [&](const auto& h) { return h != hosts[0]; });
}

}  // namespace

ProcessGrid::ProcessGrid(Communicator& world, int tensor_parallel, const std::string& model)
    : model_(model) {
  const int ranks = world.size();
  if (tensor_parallel < 1 || ranks % tensor_parallel != 0)
    throw InputError(fmt::format("parallel.{}.tp: {} does not divide {} {}; {}", model,
                                 tensor_parallel, ranks, ranks == 1 ? "rank" : "ranks",
                                 nearest_divisors(ranks, tensor_parallel)));
  tensor_ = world.split(world.rank() / tensor_parallel, model + " tensor-parallel");
  data_ = world.split(world.rank() % tensor_parallel, model + " data-parallel");
  const std::int64_t crosses = has_several_hosts(*tensor_) ? 1 : 0;
  crosses_nodes_ = world.all_reduce_value(crosses, ReduceOp::max) != 0;
}

}  // namespace scone
