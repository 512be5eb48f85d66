// A job in which one rank fails while the others wait for it: failing_job WAY. failing_jobs.sh
// checks how it ends.
#include <chrono>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "launch/session.h"
#include "parallel/communicator.h"
#include "parallel/process_grid.h"
#include "parallel/watchdog.h"

namespace scone {
namespace {

constexpr std::chrono::hours forever{1};

void all_to_all(Communicator& group) {
  const std::vector<std::int64_t> counts(static_cast<std::size_t>(group.size()), 1);
  std::vector<std::byte> sent(counts.size()), received(counts.size());
  group.all_to_all(sent, counts, received, counts, 1);
}

/// A batch stream: a thread that communicates on a group of its own, and is ended by its owner.
class Stream {
 public:
  explicit Stream(Communicator& world, int silent_rank) : group_(world.split(0, "batch stream")) {
    if (world.rank() == silent_rank) return;
    thread_ = std::thread([this] {
      try {
        for (;;) all_to_all(*group_);
      } catch (const std::runtime_error&) {
      }
    });
  }
  ~Stream() {
    group_->cancel();
    if (thread_.joinable()) thread_.join();
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

 private:
  std::unique_ptr<Communicator> group_;
  std::thread thread_;
};

void fail(const std::string& way, Communicator& world) {
  const bool last = world.rank() == world.size() - 1;
  const ProcessGrid grid(world, 1, "main");
  if (way == "all_reduce" || way == "all_to_all" || way == "broadcast") {
    if (last) throw std::runtime_error("the last rank has had enough");
    float value = 0;
    if (way == "all_reduce") grid.data().all_reduce({&value, 1}, ReduceOp::sum);
    if (way == "all_to_all") all_to_all(grid.data());
    if (way == "broadcast")
      world.broadcast(std::as_writable_bytes(std::span(&value, 1)), world.size() - 1);
  } else if (way == "pending") {
    // The others never begin what this rank has under way.
    if (!last) std::this_thread::sleep_for(forever);
    std::vector<float> values(3000000),
        slice(values.size() / static_cast<std::size_t>(world.size()));
    const std::vector<std::int64_t> counts(static_cast<std::size_t>(world.size()),
                                           static_cast<std::int64_t>(slice.size()));
    values.resize(slice.size() * counts.size());
    const auto sum = grid.data().start_all_reduce_sum(values);
    const auto part = world.start_reduce_scatter(values, counts, slice);
    throw std::runtime_error("the last rank has had enough");
  } else if (way == "stream") {
    // Its own thread waits for rank 0, which has no such thread; the others wait for it.
    const Stream stream(world, 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    if (last) throw std::runtime_error("the last rank has had enough");
    world.barrier();
  } else if (way == "hang" || way == "late") {
    Watchdog watchdog(std::chrono::milliseconds(1500),
                      [](const std::string& message) { end_all_ranks(message, 1); });
    const Phase phase("failing on purpose");
    if (way == "late" && last) std::this_thread::sleep_for(std::chrono::milliseconds(700));
    if (way == "hang" && last) std::this_thread::sleep_for(forever);
    world.barrier();
  } else {
    throw std::invalid_argument("unknown way to fail: " + way);
  }
}

}  // namespace
}  // namespace scone

int main(int argc, char** argv) {
  scone::Session session(argc, argv);
  const auto world = scone::make_mpi_communicator();
  try {
    session.check_ranks();
    scone::fail(argc == 2 ? argv[1] : "", *world);
    return 0;
  } catch (const std::exception& error) {
    return session.report(error.what(), 1);
  }
}
