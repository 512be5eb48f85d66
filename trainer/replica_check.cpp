#include "trainer/replica_check.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <xxhash.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "parallel/agreed_errors.h"

namespace scone {
namespace {

/// XXH3-64 of a value's elements. buffer: for what is not in the processor's memory.
std::uint64_t hash_of(const Tensor& value, Backend& backend, std::vector<float>& buffer) {
  if (value.device() == Device::cpu) return XXH3_64bits(value.raw(), value.bytes());
  constexpr std::int64_t kPiece = std::int64_t{1} << 22;
  const Tensor flat = value.view({value.elements()});
  std::uint64_t hash = 0;
  for (std::int64_t begin = 0; begin < flat.elements(); begin += kPiece) {
    const std::int64_t count = std::min(kPiece, flat.elements() - begin);
    buffer.resize(static_cast<std::size_t>(count));
    backend.download(flat.rows(begin, count), buffer);
    hash = XXH3_64bits_withSeed(buffer.data(), buffer.size() * sizeof(float), hash);
  }
  return hash;
}

/// A difference among the ranks of one group.
struct Difference {
  std::size_t parameters = 0;           // that differ
  std::size_t first = 0;                // of them
  std::vector<std::vector<int>> agree;  // ranks of the world with the same bits of the first
};

/// hashes: of this rank's parameters. compared[i]: whether parameter i is to be the same over the
/// group. Collective over it.
Difference compare(std::span<const std::uint64_t> hashes, const std::vector<bool>& compared,
                   Communicator& group) {
  const auto gathered = group.all_gather(std::as_bytes(hashes));
  const auto hash = [&](std::size_t rank, std::size_t i) {
    std::uint64_t value = 0;
    std::memcpy(&value, gathered[rank].data() + i * sizeof(value), sizeof(value));
    return value;
  };
  Difference difference;
  for (std::size_t i = 0; i < hashes.size(); ++i) {
    if (!compared[i]) continue;
    std::map<std::uint64_t, std::vector<int>> ranks;
    for (std::size_t rank = 0; rank < gathered.size(); ++rank)
      ranks[hash(rank, i)].push_back(group.members()[rank]);
    if (ranks.size() == 1) continue;
    if (difference.parameters++ > 0) continue;
    difference.first = i;
    for (auto& [value, same] : ranks) difference.agree.push_back(std::move(same));
    std::ranges::sort(difference.agree);
  }
  return difference;
}

}  // namespace

void check_replicas(const ParameterSet& parameters, const ProcessGrid& grid, Backend& backend,
                    Communicator& world) {
  if (world.size() == 1) return;
  std::vector<float> buffer;
  std::vector<std::uint64_t> hashes;
  std::vector<bool> replicated;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    hashes.push_back(hash_of(parameters.value(i), backend, buffer));
    replicated.push_back(parameters.spec(i).replicated());
  }
  const std::vector<bool> all(hashes.size(), true);
  const Difference differences[] = {compare(hashes, all, grid.data()),
                                    compare(hashes, replicated, grid.tensor())};
  run_agreed(world, [&] {
    for (const Difference& difference : differences) {
      if (difference.parameters == 0) continue;
      std::vector<std::string> agree;
      for (const auto& ranks : difference.agree)
        agree.push_back(
            fmt::format("rank{} {}", ranks.size() > 1 ? "s" : "", fmt::join(ranks, ", ")));
      throw std::runtime_error(fmt::format(
          "replicas of the {} model differ, in {} of {} parameters, first in {}: {}; nothing was "
          "saved, start again to go on from the last checkpoint. Memory or network is at fault, "
          "or processors of several kinds compute differently, which checkpoint.check_replicas: "
          "false allows",
          grid.model(), difference.parameters, hashes.size(),
          parameters.spec(difference.first).name, fmt::join(agree, " against ")));
    }
  });
}

}  // namespace scone
