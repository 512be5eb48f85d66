#include "launch/bench_checkpoint.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/checkpoint_writer.h"
#include "checkpoint/table/memory_region.h"
#include "data/size_suffix.h"
#include "launch/option_checks.h"
#include "model/parameter.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

struct Arguments {
  std::string folder = ".";
  std::string size = "1G";
  int rounds = 5;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// This rank's rows of as many [2048, 2048] matrices and [2048] vectors as make `bytes` over all
/// ranks.
std::vector<TensorSlice> make_slices(std::int64_t bytes, const Communicator& ranks) {
  constexpr std::int64_t kWidth = 2048;
  const std::int64_t matrices = std::max<std::int64_t>(1, bytes / (4 * kWidth * (kWidth + 1)));
  const std::int64_t begin = kWidth * ranks.rank() / ranks.size();
  const std::int64_t rows = kWidth * (ranks.rank() + 1) / ranks.size() - begin;
  std::vector<TensorSlice> slices;
  for (std::int64_t i = 0; i < matrices; ++i) {
    const std::string name = fmt::format("parameters/main.blocks.{}.", i);
    slices.push_back(
        {name + "weight", {kWidth, kWidth}, {begin, 0}, Tensor::zeros({rows, kWidth})});
    slices.push_back({name + "bias", {kWidth}, {begin}, Tensor::zeros({rows})});
  }
  // Numbers as weights have them: a disk that compresses gains nothing.
  std::vector<float> numbers(std::size_t{1} << 20);
  counter_normal(1, "bench", 0, numbers);
  for (const TensorSlice& slice : slices) {
    const auto values = slice.values.span<float>();
    for (std::size_t done = 0; done < values.size(); done += numbers.size()) {
      std::copy_n(numbers.begin(), std::min(numbers.size(), values.size() - done),
                  values.begin() + static_cast<std::ptrdiff_t>(done));
    }
  }
  return slices;
}

/// Runs dd and returns its seconds.
double run_dd(const std::string& arguments) {
  const auto start = Clock::now();
  const std::string command = "dd bs=4M status=none " + arguments;
  const int status = std::system(command.c_str());
  if (status != 0) {
    throw std::runtime_error(
        fmt::format("{}: failed with status {}", command, WEXITSTATUS(status)));
  }
  return seconds_since(start);
}

/// Drops a synced file from the page cache, so that it is read from the disk again.
void drop_from_cache(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw std::runtime_error(path.string() + ": cannot be opened");
  ::posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
  ::close(descriptor);
}

std::string quoted(const fs::path& path) {
  std::string text = "'";
  for (const char c : path.string()) text += c == '\'' ? "'\\''" : std::string(1, c);
  return text + "'";
}

/// One rank makes the folder, all use it, and it goes with the object.
class BenchFolder {
 public:
  BenchFolder(const std::string& parent, Communicator& world) : world_(world) {
    std::string path;
    if (world.rank() == 0) {
      path = fs::path(parent) / "scone-bench-XXXXXX";
      if (::mkdtemp(path.data()) == nullptr) {
        throw InputError(fmt::format("--folder {}: no folder can be made in it", parent));
      }
    }
    path_ = world.broadcast_string(path, 0);
  }
  ~BenchFolder() {
    std::error_code ignored;
    if (world_.rank() == 0) fs::remove_all(path_, ignored);
  }
  BenchFolder(const BenchFolder&) = delete;
  BenchFolder& operator=(const BenchFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  Communicator& world_;
  fs::path path_;
};

struct Times {
  std::vector<double> dd_write, write, dd_read, read, sync_blocked, async_blocked;
};

fs::path save_and_wait(CheckpointWriter& writer, std::int64_t step,
                       std::span<const TensorSlice> slices) {
  CheckpointManifest manifest;
  manifest.step = step;
  writer.save(manifest, slices);
  writer.wait();
  const SaveOutcome outcome = writer.take_outcome().value();
  if (!outcome.saved()) throw std::runtime_error(outcome.error);
  return outcome.path;
}

void run_round(const fs::path& folder, std::int64_t step, std::int64_t bytes,
               std::span<const TensorSlice> slices, CheckpointWriter& sync, CheckpointWriter& async,
               Communicator& world, Times& times) {
  const bool root = world.rank() == 0;
  const fs::path dd_file = folder / "dd.bin";
  fs::path path;
  // Each goes first in every other round: a disk may have a cache that the first one fills.
  for (const bool with_dd : {step % 2 == 0, step % 2 != 0}) {
    if (with_dd && root) {
      times.dd_write.push_back(run_dd(fmt::format(
          "if=/dev/zero of={} count={} iflag=count_bytes conv=fsync", quoted(dd_file), bytes)));
    }
    world.barrier();
    if (with_dd) continue;
    const auto start = Clock::now();
    path = save_and_wait(sync, step, slices);
    times.write.push_back(seconds_since(start));
    times.sync_blocked.push_back(sync.blocked_seconds());
  }
  if (root) {
    drop_from_cache(dd_file);
    times.dd_read.push_back(run_dd(fmt::format("if={} of=/dev/null", quoted(dd_file))));
    fs::remove(dd_file);
    for (const auto& entry : fs::directory_iterator(path)) drop_from_cache(entry.path());
  }
  world.barrier();
  // As a run resumes: one rank verifies all checksums, then each reads what is its own.
  const auto start = Clock::now();
  std::string problem;
  if (root && !find_checkpoint(path)) problem = path.string() + ": not valid after it was written";
  problem = world.broadcast_string(problem, 0);
  if (!problem.empty()) throw std::runtime_error(problem);
  read_slices(path, slices);
  world.barrier();
  times.read.push_back(seconds_since(start));
  save_and_wait(async, step, slices);
  times.async_blocked.push_back(world.all_reduce_value(async.blocked_seconds(), ReduceOp::max));
}

int run_bench(const Arguments& arguments, CommandContext& context) {
  Communicator& world = context.world;
  const std::int64_t size = parse_size_option("--size", arguments.size);
  // A save while training goes on copies it.
  const double needed = 2.0 * static_cast<double>(size) / world.size();
  if (const auto available = static_cast<double>(available_memory()); needed > available) {
    throw InputError(
        fmt::format("--size {}: a rank takes {:.1f} GB of memory, and {:.1f} GB are available; "
                    "give a smaller size, or more ranks on other nodes",
                    arguments.size, needed / 1e9, available / 1e9));
  }
  const BenchFolder folder(arguments.folder, world);
  const auto slices = make_slices(size, world);
  std::int64_t bytes = 0;
  for (const TensorSlice& slice : slices) bytes += static_cast<std::int64_t>(slice.values.bytes());
  bytes = world.all_reduce_value(bytes, ReduceOp::sum);
  CheckpointWriter sync(folder.path() / "sync", world.split(0, "checkpoint"), {.keep = 1});
  CheckpointWriter async(folder.path() / "async", world.split(0, "checkpoint"),
                         {.keep = 1, .async = true});
  Times times;
  for (int round = 0; round <= arguments.rounds; ++round) {
    if (round == 1) times = {};  // the first one warms up
    run_round(folder.path(), round, bytes, slices, sync, async, world, times);
  }
  if (!context.is_root()) return 0;
  const auto rate = [&](const std::vector<double>& seconds) {
    return static_cast<double>(bytes) / median(seconds) / 1e9;
  };
  const double write = rate(times.write), read = rate(times.read);
  const double dd_write = rate(times.dd_write), dd_read = rate(times.dd_read);
  const double sync_blocked = median(times.sync_blocked);
  const double async_blocked = median(times.async_blocked);
  if (!context.json) {
    fmt::print("{:.2f} GB on {}, median of {} rounds\n", static_cast<double>(bytes) / 1e9,
               world.describe(), arguments.rounds);
    fmt::print("  write {:6.2f} GB/s   dd with fsync    {:6.2f} GB/s   share {:.2f}\n", write,
               dd_write, write / dd_write);
    fmt::print("  read  {:6.2f} GB/s   dd, not cached   {:6.2f} GB/s   share {:.2f}\n", read,
               dd_read, read / dd_read);
    fmt::print("  a save keeps the step for {:.3f} s, {:.3f} s where asynchronous ({:.1f} %)\n",
               sync_blocked, async_blocked, 100 * async_blocked / sync_blocked);
  }
  context.print_result({{"bytes", bytes},
                        {"ranks", world.size()},
                        {"rounds", arguments.rounds},
                        {"write_gb_per_second", write},
                        {"dd_write_gb_per_second", dd_write},
                        {"read_gb_per_second", read},
                        {"dd_read_gb_per_second", dd_read},
                        {"sync_blocked_seconds", sync_blocked},
                        {"async_blocked_seconds", async_blocked}});
  return 0;
}

}  // namespace

void add_bench_checkpoint(CLI::App& bench, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = bench.add_subcommand(
      "checkpoint",
      "Writes and reads checkpoints, checksums included, beside dd on the same disk. Alone or "
      "under mpirun.");
  command->add_option("--folder", arguments->folder, "On the disk to measure")
      ->capture_default_str();
  command->add_option("--size", arguments->size, "Bytes of a checkpoint over all ranks (1G, 4G)")
      ->capture_default_str();
  command->add_option("--rounds", arguments->rounds, "Rounds after the one that warms up")
      ->check(at_least(1))
      ->capture_default_str();
  command->callback([arguments, &action] {
    action = [arguments](CommandContext& context) { return run_bench(*arguments, context); };
  });
}

}  // namespace scone
