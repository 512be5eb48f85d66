#include "parallel/collective.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

namespace scone {

int world_rank(const Communicator& group) {
  return group.members()[static_cast<std::size_t>(group.rank())];
}

std::string describe_group(const Communicator& group) {
  constexpr std::size_t shown = 16;
  const auto members = group.members();
  if (members.size() == 1) return fmt::format("{} (rank {} alone)", group.name(), members[0]);
  const auto first = members.first(std::min(shown, members.size()));
  const std::string rest =
      members.size() > shown ? fmt::format(", .. of {} ranks", members.size()) : std::string();
  return fmt::format("{} (ranks {}{})", group.name(), fmt::join(first, ", "), rest);
}

void fail_collective(const Communicator& group, const char* collective, const std::string& what) {
  throw std::runtime_error(fmt::format("rank {}: {} of {}: {}", world_rank(group), collective,
                                       describe_group(group), what));
}

void check_color(const Communicator& group, int color) {
  if (color < 0) fail_collective(group, "split", fmt::format("color {} is negative", color));
}

void check_root(const Communicator& group, int root) {
  if (root < 0 || root >= group.size())
    fail_collective(group, "broadcast", fmt::format("root {} of {} ranks", root, group.size()));
}

void check_counts(const Communicator& group, const char* collective, const char* what,
                  std::span<const std::int64_t> counts, std::size_t elements) {
  if (counts.size() != group.members().size())
    fail_collective(group, collective,
                    fmt::format("{} counts for {}, expected one a rank", counts.size(), what));
  std::int64_t sum = 0;
  for (const std::int64_t count : counts) {
    if (count < 0) fail_collective(group, collective, fmt::format("a count of {}", count));
    sum += count;
  }
  if (static_cast<std::size_t>(sum) != elements)
    fail_collective(group, collective,
                    fmt::format("the counts for {} add up to {} elements, of which there are {}",
                                what, sum, elements));
}

void check_exchange(const Communicator& group, const char* collective,
                    std::span<const std::byte> send, std::span<const std::int64_t> send_counts,
                    std::span<const std::byte> receive,
                    std::span<const std::int64_t> receive_counts, std::size_t element_bytes) {
  if (element_bytes == 0 || send.size() % element_bytes != 0 || receive.size() % element_bytes != 0)
    fail_collective(group, collective,
                    fmt::format("{} bytes to send and {} to receive are no whole elements of {}",
                                send.size(), receive.size(), element_bytes));
  check_counts(group, collective, "send", send_counts, send.size() / element_bytes);
  check_counts(group, collective, "receive", receive_counts, receive.size() / element_bytes);
}

void check_slices(const Communicator& group, const char* collective, std::size_t elements,
                  std::span<const std::int64_t> counts, std::size_t slice_elements) {
  check_counts(group, collective, "values", counts, elements);
  const auto own = static_cast<std::size_t>(counts[static_cast<std::size_t>(group.rank())]);
  if (slice_elements != own)
    fail_collective(
        group, collective,
        fmt::format("the slice has {} elements, this rank's count is {}", slice_elements, own));
}

std::vector<SlicePiece> slice_pieces(std::span<const std::int64_t> counts,
                                     std::size_t piece_elements) {
  const std::int64_t widest = *std::max_element(counts.begin(), counts.end());
  const auto width =
      static_cast<std::int64_t>(std::max<std::size_t>(1, piece_elements / counts.size()));
  std::vector<SlicePiece> pieces;
  for (std::int64_t begin = 0; begin < widest; begin += width) {
    auto& piece = pieces.emplace_back();
    std::int64_t slice_begin = 0;
    for (const std::int64_t count : counts) {
      piece.counts.push_back(std::clamp<std::int64_t>(count - begin, 0, width));
      piece.begins.push_back(static_cast<std::size_t>(slice_begin + std::min(begin, count)));
      piece.elements += static_cast<std::size_t>(piece.counts.back());
      slice_begin += count;
    }
  }
  return pieces;
}

}  // namespace scone
