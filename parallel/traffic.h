#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "parallel/communicator.h"

namespace scone {

enum class CollectiveKind { all_reduce, reduce_scatter, all_gather, all_to_all, broadcast };
constexpr std::size_t kCollectiveKinds = 5;
const char* name_of(CollectiveKind kind);

/// Calls of one kind of collective on one rank and their bytes: of all_reduce the values', of
/// reduce_scatter and all_gather those of all slices, of an all_gather of bytes this rank's, of
/// all_to_all what goes to other ranks, of broadcast the bytes that all have in the end.
struct CollectiveCount {
  std::int64_t calls = 0, bytes = 0;
  bool operator==(const CollectiveCount&) const = default;
};

/// What the collectives of a rank's groups have moved. Groups are in the order in which they were
/// made, which is the same on every rank; groups of one name are counted as one, groups of one rank
/// not at all.
class Traffic {
 public:
  struct Group {
    std::string name;
    int ranks = 0;
    std::array<CollectiveCount, kCollectiveKinds> kinds;
    const CollectiveCount& of(CollectiveKind kind) const {
      return kinds[static_cast<std::size_t>(kind)];
    }
  };
  /// Lives as long as this.
  Group& group(const std::string& name, int ranks);
  const std::deque<Group>& groups() const { return groups_; }
  /// This minus what was counted before; groups that are new since are whole.
  Traffic since(const Traffic& before) const;
  /// Adds what another has counted.
  void add(const Traffic& other);
  /// Adds up what all ranks of the world have counted. Collective over it.
  void sum_over(Communicator& world);

 private:
  std::deque<Group> groups_;
};

/// A row for each group and kind that was called: group, ranks, kind, calls, bytes.
nlohmann::json traffic_json(const Traffic& traffic);

/// `inner` with its collectives, and those of all groups that are split from it, counted in
/// `traffic`. Groups of split_on_host, which other threads use, are not counted. Both must outlive
/// what is returned; one thread at a time uses all of it.
std::unique_ptr<Communicator> count_traffic(Communicator& inner, Traffic& traffic);

}  // namespace scone
