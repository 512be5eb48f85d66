#include "parallel/cuda/nccl_communicator.h"

#include <fmt/format.h>
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "parallel/collective.h"
#include "parallel/cuda/device.h"
#include "parallel/cuda/nccl_devices.h"
#include "parallel/cuda/sum_slices.h"
#include "parallel/watchdog.h"

namespace scone {
namespace {

// What a Bf16 reduction receives at once, over all sources: 64 MiB.
constexpr std::size_t bf16_piece = 32u << 20;
// Slices of an all_reduce begin at multiples of 16 bytes.
constexpr std::size_t bf16_unit = 8;

template <class T>
constexpr ncclDataType_t nccl_type = ncclFloat32;
template <>
constexpr ncclDataType_t nccl_type<Bf16> = ncclBfloat16;

ncclRedOp_t nccl_op(ReduceOp op) {
  return op == ReduceOp::sum ? ncclSum : op == ReduceOp::max ? ncclMax : ncclMin;
}

class NcclCommunicator;

/// A rank's communicators: of the world, and all that were split from it. When NCCL finds an error
/// in one of them, its work stays on the device, others' queue up behind it, and whoever frees
/// device memory waits for them all; so the error ends all of them.
class Family {
 public:
  void add(NcclCommunicator* member);
  void remove(NcclCommunicator* member);
  void abort() noexcept;

 private:
  std::mutex mutex_;
  std::set<NcclCommunicator*> members_;
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> host, std::shared_ptr<Family> family)
      : host_(std::move(host)), family_(std::move(family)) {
    device_.make_current();
    ncclUniqueId id{};
    if (rank() == 0) {
      const ncclResult_t result = ncclGetUniqueId(&id);
      if (result != ncclSuccess) fail("start of NCCL", result);
    }
    host_->broadcast(std::as_writable_bytes(std::span(&id, 1)), 0);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    try {
      settle("start of NCCL", ncclCommInitRankConfig(&communicator_, size(), id, rank(), &config));
    } catch (...) {
      abort();
      throw;
    }
    family_->add(this);
    health_ = device_.add_health_check([this] { check_health(); });
  }
  /// Waits for the group's work on the device, and the other ranks' end of it; after an error the
  /// work is aborted.
  ~NcclCommunicator() override {
    auto broken = [this] { return failed_ || cancelled_ || std::uncaught_exceptions() > 0; };
    try {
      if (!broken()) device_.wait(device_.communication());
    } catch (const std::exception&) {
      failed_ = true;  // of work whose results nobody has waited for
    }
    watched_.reset();
    health_.reset();
    try {
      if (!broken()) settle("end of NCCL", ncclCommFinalize(communicator_));
    } catch (const std::exception&) {
      failed_ = true;
    }
    family_->remove(this);
    if (broken())
      abort();
    else
      ncclCommDestroy(communicator_);
  }
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  std::string describe() const override {
    int version = 0;
    ncclGetVersion(&version);
    return fmt::format("NCCL {}.{}.{}, {} ranks; host: {}", version / 10000, version / 100 % 100,
                       version % 100, size(), host_->describe());
  }
  const std::string& name() const override { return host_->name(); }
  std::span<const int> members() const override { return host_->members(); }
  bool on_device() const override { return true; }

  std::unique_ptr<Communicator> split(int color, const std::string& name) override {
    return std::make_unique<NcclCommunicator>(host_->split(color, name), family_);
  }
  std::unique_ptr<Communicator> split_on_host(int color, const std::string& name) override {
    return host_->split(color, name);
  }
  void cancel() override {
    cancelled_ = true;
    host_->cancel();
  }

  /// Ends the group's work on the device, whether or not it is done.
  void abort() noexcept {
    failed_ = true;
    if (communicator_ != nullptr) ncclCommAbort(std::exchange(communicator_, nullptr));
  }

  // Of host memory.
  void barrier() override { host_->barrier(); }
  void all_reduce(std::span<double> values, ReduceOp op) override { host_->all_reduce(values, op); }
  void all_reduce(std::span<std::int64_t> values, ReduceOp op) override {
    host_->all_reduce(values, op);
  }
  void broadcast(std::span<std::byte> bytes, int root) override { host_->broadcast(bytes, root); }
  std::vector<std::vector<std::byte>> all_gather(std::span<const std::byte> bytes) override {
    return host_->all_gather(bytes);
  }
  void all_to_all(std::span<const std::byte> send, std::span<const std::int64_t> send_counts,
                  std::span<std::byte> receive, std::span<const std::int64_t> receive_counts,
                  std::size_t element_bytes) override {
    host_->all_to_all(send, send_counts, receive, receive_counts, element_bytes);
  }

  // Of device memory: begun, and the compute stream waits for them.
  void all_reduce(std::span<float> values, ReduceOp op) override {
    start("all_reduce", [&] { reduce_all(values, nccl_op(op)); })->wait();
  }
  void all_reduce_sum(std::span<Bf16> values) override {
    start("all_reduce", [&] { reduce_all(values); })->wait();
  }
  void reduce_scatter(std::span<const float> values, std::span<const std::int64_t> counts,
                      std::span<float> slice) override {
    start_reduce_scatter(values, counts, slice)->wait();
  }
  void reduce_scatter(std::span<const Bf16> values, std::span<const std::int64_t> counts,
                      std::span<Bf16> slice) override {
    check_slices(*this, "reduce_scatter", values.size(), counts, slice.size());
    start("reduce_scatter", [&] { scatter(values, counts, slice); })->wait();
  }
  void all_gather(std::span<float> values, std::span<const std::int64_t> counts) override {
    check_counts(*this, "all_gather", "values", counts, values.size());
    start("all_gather", [&] { gather(values, counts); })->wait();
  }
  void all_gather(std::span<Bf16> values, std::span<const std::int64_t> counts) override {
    check_counts(*this, "all_gather", "values", counts, values.size());
    start("all_gather", [&] { gather(values, counts); })->wait();
  }

  std::unique_ptr<PendingCollective> start_all_reduce_sum(std::span<float> values) override {
    return start("all_reduce", [&] { reduce_all(values, ncclSum); });
  }
  std::unique_ptr<PendingCollective> start_reduce_scatter(std::span<const float> values,
                                                          std::span<const std::int64_t> counts,
                                                          std::span<float> slice) override {
    check_slices(*this, "reduce_scatter", values.size(), counts, slice.size());
    return start("reduce_scatter", [&] { scatter(values, counts, slice); });
  }
  std::unique_ptr<PendingCollective> start_all_to_all(std::span<const std::byte> send,
                                                      std::span<const std::int64_t> send_counts,
                                                      std::span<std::byte> receive,
                                                      std::span<const std::int64_t> receive_counts,
                                                      std::size_t element_bytes) override {
    check_exchange(*this, "all_to_all", send, send_counts, receive, receive_counts, element_bytes);
    const auto own = static_cast<std::size_t>(rank());
    if (send_counts[own] != receive_counts[own])
      fail_collective(*this, "all_to_all",
                      fmt::format("sends {} elements to itself, expects {}", send_counts[own],
                                  receive_counts[own]));
    return start("all_to_all",
                 [&] { exchange(send, send_counts, receive, receive_counts, element_bytes); });
  }

 private:
  /// Of work in the communication stream.
  class Pending final : public PendingCollective {
   public:
    Pending() { finished_.record(cuda_device().communication()); }
    ~Pending() override {
      if (std::uncaught_exceptions() == 0) wait();
    }
    Pending(const Pending&) = delete;
    Pending& operator=(const Pending&) = delete;
    bool done() override { return held_ || finished_.done(); }
    void wait() override {
      if (held_) return;
      finished_.hold(cuda_device().compute());
      held_ = true;
    }

   private:
    cuda::Event finished_;
    bool held_ = false;  // the compute stream waits for it
  };

  /// issue() gives the communication stream its work, after what the compute stream has.
  template <class Issue>
  std::unique_ptr<PendingCollective> start(const char* collective, Issue&& issue) {
    check_health();
    cuda::Event ready;
    ready.record(device_.compute());
    ready.hold(device_.communication());
    issue();
    auto pending = std::make_unique<Pending>();
    watched_.reset();  // of the collective before, whose event this was
    last_.record(device_.communication());
    // The device may wait for other ranks from now on, until the event.
    watched_.emplace(*this, collective, [this] {
      try {
        device_.make_current();
        return last_.done();
      } catch (const std::exception&) {
        return false;
      }
    });
    return pending;
  }

  [[noreturn]] void fail(const char* collective, ncclResult_t result) {
    std::string message = fmt::format("NCCL: {}", ncclGetErrorString(result));
    if (const char* more = ncclGetLastError(communicator_); more != nullptr && *more != '\0')
      message += fmt::format(": {}", more);
    family_->abort();
    fail_collective(*this, collective, message);
  }

  void check_going_on(const char* collective) {
    if (cancelled_) fail_collective(*this, collective, "cancelled");
    if (failed_) fail_collective(*this, collective, "NCCL was ended after an earlier error");
  }

  /// Called by whoever waits for the device, too.
  void check_health() {
    check_going_on("collective");
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(communicator_, &state);
    if (asked != ncclSuccess) fail("collective", asked);
    if (state != ncclSuccess && state != ncclInProgress) fail("collective", state);
  }

  /// Until NCCL's own threads have done what a call began: they may need the other ranks.
  void settle(const char* collective, ncclResult_t result) {
    using Clock = std::chrono::steady_clock;
    if (result == ncclInProgress) {
      const CollectiveScope scope(*this, collective);
      const auto begin = Clock::now();
      while (result == ncclInProgress) {
        check_going_on(collective);
        if (Clock::now() - begin > std::chrono::microseconds(100))
          std::this_thread::sleep_for(std::chrono::microseconds(20));
        const ncclResult_t asked = ncclCommGetAsyncError(communicator_, &result);
        if (asked != ncclSuccess) result = asked;
      }
    }
    if (result != ncclSuccess) fail(collective, result);
  }

  /// Calls of which NCCL makes one. A call that fails ends the group before it throws.
  class Group {
   public:
    Group(NcclCommunicator& of, const char* collective) : of_(of), collective_(collective) {
      of_.settle(collective_, ncclGroupStart());
    }
    ~Group() {
      if (open_) ncclGroupEnd();
    }
    Group(const Group&) = delete;
    Group& operator=(const Group&) = delete;
    /// Within a group nothing is under way yet.
    void call(ncclResult_t result) {
      if (result == ncclSuccess || result == ncclInProgress) return;
      open_ = false;
      ncclGroupEnd();
      of_.fail(collective_, result);
    }
    void finish() {
      open_ = false;
      of_.settle(collective_, ncclGroupEnd());
    }

   private:
    NcclCommunicator& of_;
    const char* collective_;
    bool open_ = true;
  };

  static bool all_equal(std::span<const std::int64_t> counts) {
    return std::adjacent_find(counts.begin(), counts.end(), std::not_equal_to<>()) == counts.end();
  }

  /// f(rank, begin, count) for every slice that has elements, of each rank.
  template <class F>
  static void for_slices(std::span<const std::int64_t> counts, F&& f) {
    std::size_t begin = 0;
    for (std::size_t r = 0; r < counts.size(); ++r) {
      const auto count = static_cast<std::size_t>(counts[r]);
      if (count > 0) f(static_cast<int>(r), begin, count);
      begin += count;
    }
  }

  void reduce_all(std::span<float> values, ncclRedOp_t op) {
    if (values.empty()) return;
    settle("all_reduce", ncclAllReduce(values.data(), values.data(), values.size(), ncclFloat32, op,
                                       communicator_, device_.communication()));
  }

  /// Each rank sums its slice, and all gather them: NCCL's own would round at every rank.
  void reduce_all(std::span<Bf16> values) {
    if (values.empty()) return;
    if (size() <= 2) {  // one addition, rounded once
      settle("all_reduce", ncclAllReduce(values.data(), values.data(), values.size(), ncclBfloat16,
                                         ncclSum, communicator_, device_.communication()));
      return;
    }
    const auto ranks = static_cast<std::size_t>(size());
    const std::size_t units = (values.size() + bf16_unit - 1) / bf16_unit;
    std::vector<std::int64_t> counts;
    std::size_t begin = 0;
    Bf16* slice = nullptr;
    for (std::size_t r = 0; r < ranks; ++r) {
      const std::size_t end = std::min(values.size(), units * (r + 1) / ranks * bf16_unit);
      counts.push_back(static_cast<std::int64_t>(end - begin));
      if (r == static_cast<std::size_t>(rank())) slice = values.data() + begin;
      begin = end;
    }
    scatter(std::span<const Bf16>(values), counts,
            std::span(slice, static_cast<std::size_t>(counts[static_cast<std::size_t>(rank())])));
    gather(values, counts);
  }

  void scatter(std::span<const float> values, std::span<const std::int64_t> counts,
               std::span<float> slice) {
    constexpr const char* collective = "reduce_scatter";
    if (values.empty()) return;
    const cudaStream_t stream = device_.communication();
    if (all_equal(counts)) {
      settle(collective, ncclReduceScatter(values.data(), slice.data(), slice.size(), ncclFloat32,
                                           ncclSum, communicator_, stream));
      return;
    }
    Group group(*this, collective);
    for_slices(counts, [&](int root, std::size_t begin, std::size_t count) {
      group.call(ncclReduce(values.data() + begin, root == rank() ? slice.data() : nullptr, count,
                            ncclFloat32, ncclSum, root, communicator_, stream));
    });
    group.finish();
  }

  /// Every rank gets all others' values of its slice, and sums them. slice may be in values, where
  /// it belongs.
  void scatter(std::span<const Bf16> values, std::span<const std::int64_t> counts,
               std::span<Bf16> slice) {
    constexpr const char* collective = "reduce_scatter";
    const auto own = static_cast<std::size_t>(rank());
    const cudaStream_t stream = device_.communication();
    if (size() == 1) {
      copy_own(std::as_bytes(values), std::as_writable_bytes(slice));
      return;
    }
    std::size_t done = 0;
    for (const SlicePiece& piece : slice_pieces(counts, bf16_piece)) {
      const auto width = static_cast<std::size_t>(piece.counts[own]);
      const std::size_t needed = width * (counts.size() - 1) * sizeof(Bf16);
      if (received_.bytes() < needed) {
        received_ = cuda::DeviceBuffer();  // waits for what uses it
        received_ = cuda::DeviceBuffer(needed);
      }
      auto* received = reinterpret_cast<Bf16*>(received_.data());
      Group group(*this, collective);
      for (std::size_t r = 0; r < counts.size(); ++r) {
        if (r == own) continue;
        const auto sent = static_cast<std::size_t>(piece.counts[r]);
        if (sent > 0)
          group.call(ncclSend(values.data() + piece.begins[r], sent, ncclBfloat16,
                              static_cast<int>(r), communicator_, stream));
        if (width > 0)
          group.call(ncclRecv(received + (r - (r > own ? 1 : 0)) * width, width, ncclBfloat16,
                              static_cast<int>(r), communicator_, stream));
      }
      group.finish();
      cuda::sum_slices(values.data() + piece.begins[own], received, rank(), size(),
                       static_cast<std::int64_t>(width), slice.data() + done, stream);
      done += width;
    }
  }

  template <class T>
  void gather(std::span<T> values, std::span<const std::int64_t> counts) {
    constexpr const char* collective = "all_gather";
    if (values.empty()) return;
    const cudaStream_t stream = device_.communication();
    if (all_equal(counts)) {
      const auto count = static_cast<std::size_t>(counts[0]);
      settle(collective, ncclAllGather(values.data() + static_cast<std::size_t>(rank()) * count,
                                       values.data(), count, nccl_type<T>, communicator_, stream));
      return;
    }
    Group group(*this, collective);
    for_slices(counts, [&](int root, std::size_t begin, std::size_t count) {
      T* slice = values.data() + begin;
      group.call(ncclBroadcast(slice, slice, count, nccl_type<T>, root, communicator_, stream));
    });
    group.finish();
  }

  void exchange(std::span<const std::byte> send, std::span<const std::int64_t> send_counts,
                std::span<std::byte> receive, std::span<const std::int64_t> receive_counts,
                std::size_t element_bytes) {
    const cudaStream_t stream = device_.communication();
    Group group(*this, "all_to_all");
    std::span<const std::byte> own_sent;
    for_slices(send_counts, [&](int peer, std::size_t begin, std::size_t count) {
      const auto bytes = send.subspan(begin * element_bytes, count * element_bytes);
      if (peer == rank())
        own_sent = bytes;
      else
        group.call(ncclSend(bytes.data(), bytes.size(), ncclInt8, peer, communicator_, stream));
    });
    std::span<std::byte> own_received;
    for_slices(receive_counts, [&](int peer, std::size_t begin, std::size_t count) {
      const auto bytes = receive.subspan(begin * element_bytes, count * element_bytes);
      if (peer == rank())
        own_received = bytes;
      else
        group.call(ncclRecv(bytes.data(), bytes.size(), ncclInt8, peer, communicator_, stream));
    });
    group.finish();
    copy_own(own_sent, own_received);
  }

  void copy_own(std::span<const std::byte> from, std::span<std::byte> to) {
    if (!from.empty())
      cuda::check(cudaMemcpyAsync(to.data(), from.data(), from.size(), cudaMemcpyDeviceToDevice,
                                  device_.communication()),
                  "cudaMemcpyAsync of a collective's own part");
  }

  CudaDevice& device_ = cuda_device();
  std::unique_ptr<Communicator> host_;
  std::shared_ptr<Family> family_;
  ncclComm_t communicator_ = nullptr;
  std::atomic<bool> failed_ = false, cancelled_ = false;
  cuda::DeviceBuffer received_;  // of a Bf16 reduction
  cuda::Event last_;             // the end of the last collective
  std::optional<CollectiveScope> watched_;
  std::shared_ptr<void> health_;
};

void Family::add(NcclCommunicator* member) {
  const std::lock_guard lock(mutex_);
  members_.insert(member);
}
void Family::remove(NcclCommunicator* member) {
  const std::lock_guard lock(mutex_);
  members_.erase(member);
}
void Family::abort() noexcept {
  const std::lock_guard lock(mutex_);
  // One by one, a member's end could wait for the work of another that is not told yet. NCCL before
  // 2.22 knows no abort of several; where that hangs, the watchdog ends the process.
  constexpr bool kTogether = NCCL_VERSION_CODE >= 22200;
  if (kTogether) ncclGroupStart();
  for (NcclCommunicator* member : members_) member->abort();
  if (kTogether) ncclGroupEnd();
}

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host) {
  check_one_rank_a_device(*host);
  return std::make_unique<NcclCommunicator>(std::move(host), std::make_shared<Family>());
}

}  // namespace scone
