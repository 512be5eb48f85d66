#include "launch/doctor/speed.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <span>
#include <stdexcept>

namespace scone {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double all_reduce_budget = 0.6;  // seconds of each size
constexpr double write_budget = 1.2, read_budget = 0.8;
constexpr std::size_t block_bytes = std::size_t{4} << 20;
constexpr int most_blocks_a_sync = 16;
constexpr double quick_sync = 0.2;  // seconds, after which more is written before the next
constexpr std::int64_t most_bytes = std::int64_t{4} << 30;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class Descriptor {
 public:
  explicit Descriptor(int descriptor) : descriptor_(descriptor) {}
  ~Descriptor() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return descriptor_; }

 private:
  int descriptor_;
};

void write_for_a_while(int file, std::vector<char>& block, DiskSpeed& speed) {
  const std::int64_t most = std::min(most_bytes, speed.free / 4);
  const auto start = Clock::now();
  int blocks = 1;
  do {
    const auto begin = Clock::now();
    for (int i = 0; i < blocks; ++i) {
      std::memcpy(block.data(), &speed.bytes, sizeof(speed.bytes));  // no two blocks are the same
      const auto written = ::write(file, block.data(), block.size());
      if (written < 0) throw std::runtime_error(std::strerror(errno));
      speed.bytes += written;
    }
    if (::fdatasync(file) != 0) throw std::runtime_error(std::strerror(errno));
    if (seconds_since(begin) < quick_sync) blocks = std::min(2 * blocks, most_blocks_a_sync);
    speed.write_seconds = seconds_since(start);
  } while (speed.write_seconds < write_budget && speed.bytes < most);
}

/// Reads all, or as much as there is time for and then takes the rest for as fast.
void read_for_a_while(int file, std::vector<char>& block, DiskSpeed& speed) {
  ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  const auto start = Clock::now();
  std::int64_t read = 0;
  while (read < speed.bytes) {
    const auto got = ::pread(file, block.data(), block.size(), read);
    if (got <= 0) throw std::runtime_error(got < 0 ? std::strerror(errno) : "the file is short");
    read += got;
    if (seconds_since(start) > read_budget) break;
  }
  speed.read_seconds =
      seconds_since(start) * static_cast<double>(speed.bytes) / static_cast<double>(read);
}

}  // namespace

std::vector<AllReduceSpeed> measure_all_reduce(Communicator& world) {
  std::vector<AllReduceSpeed> speeds;
  for (const std::int64_t bytes :
       {std::int64_t{1} << 10, std::int64_t{1} << 20, std::int64_t{64} << 20}) {
    std::vector<float> values(static_cast<std::size_t>(bytes) / sizeof(float));
    const auto reduce = [&] {
      std::fill(values.begin(), values.end(), static_cast<float>(world.rank() + 1));
      world.barrier();
      const auto start = Clock::now();
      world.all_reduce(std::span<float>(values), ReduceOp::sum);
      return seconds_since(start);
    };
    AllReduceSpeed speed{.bytes = bytes};
    reduce();  // with what is set up for the size
    const double first = world.all_reduce_value(reduce(), ReduceOp::max);
    const auto expected = static_cast<float>(world.size() * (world.size() + 1) / 2);
    if (values.front() != expected || values.back() != expected)
      throw std::runtime_error(
          fmt::format("an all-reduce of {} bytes over {} ranks gave {}, not {}", bytes,
                      world.size(), values.back(), expected));
    speed.rounds = std::clamp<std::int64_t>(
        static_cast<std::int64_t>(all_reduce_budget / std::max(first, 1e-6)), 1, 2000);
    double sum = 0;
    for (std::int64_t round = 0; round < speed.rounds; ++round) sum += reduce();
    speed.seconds = world.all_reduce_value(sum, ReduceOp::max) / static_cast<double>(speed.rounds);
    speeds.push_back(speed);
  }
  return speeds;
}

DiskSpeed measure_disk(const std::filesystem::path& folder, Communicator& world) {
  DiskSpeed speed;
  // One name for all ranks, of rank 0's process.
  const auto file = folder / world.broadcast_string(fmt::format(".scone-doctor.{}", getpid()), 0);
  const Descriptor descriptor(
      world.rank() == 0 ? ::open(file.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600) : -1);
  if (world.rank() == 0 && descriptor.get() < 0) speed.error = std::strerror(errno);
  speed.error = world.broadcast_string(speed.error, 0);
  if (!speed.error.empty()) return speed;
  const bool sees = ::access(file.c_str(), F_OK) == 0;
  const auto seen = world.all_gather(std::as_bytes(std::span(&sees, 1)));
  for (std::size_t rank = 0; rank < seen.size(); ++rank)
    if (seen[rank].front() == std::byte{0}) speed.blind.push_back(static_cast<int>(rank));
  if (world.rank() == 0) {
    ::unlink(file.c_str());
    struct statvfs system {};
    if (fstatvfs(descriptor.get(), &system) == 0) {
      speed.capacity = static_cast<std::int64_t>(system.f_blocks * system.f_frsize);
      speed.free = static_cast<std::int64_t>(system.f_bavail * system.f_frsize);
    }
    try {
      std::vector<char> block(block_bytes, 'x');
      write_for_a_while(descriptor.get(), block, speed);
      read_for_a_while(descriptor.get(), block, speed);
    } catch (const std::runtime_error& error) {
      speed.error = error.what();
    }
  }
  world.barrier();
  return speed;
}

std::vector<double> measure_clocks(Communicator& world) {
  constexpr std::size_t rounds = 9;
  std::vector<std::vector<double>> ahead(static_cast<std::size_t>(world.size()));
  for (std::size_t round = 0; round < rounds; ++round) {
    world.barrier();
    const double now =
        std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
    const auto all = world.all_gather(std::as_bytes(std::span(&now, 1)));
    double of_root = 0;
    std::memcpy(&of_root, all.front().data(), sizeof(of_root));
    for (std::size_t rank = 0; rank < all.size(); ++rank) {
      double of_rank = 0;
      std::memcpy(&of_rank, all[rank].data(), sizeof(of_rank));
      ahead[rank].push_back(of_rank - of_root);
    }
  }
  std::vector<double> medians;
  for (auto& of_rank : ahead) {
    std::nth_element(of_rank.begin(), of_rank.begin() + rounds / 2, of_rank.end());
    medians.push_back(of_rank[rounds / 2]);
  }
  return medians;
}

}  // namespace scone
