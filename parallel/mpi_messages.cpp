#include "parallel/mpi_messages.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <exception>
#include <string>
#include <thread>

#include "parallel/collective.h"
#include "parallel/watchdog.h"

namespace scone {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t message_piece_bytes = 256u << 20;
constexpr std::chrono::microseconds shortest_spin{1000};
constexpr double spun_bytes_per_second = 1e9;
// Each look costs the cores some microseconds, so that long waits look less often.
constexpr std::chrono::microseconds nap{30}, longest_nap{2000};
constexpr int wait_over_nap = 32;

}  // namespace

void check_mpi(const Communicator& group, const char* collective, int code) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  fail_collective(group, collective, std::string(text, static_cast<std::size_t>(length)));
}

MpiMessages::MpiMessages(const Communicator& group, MPI_Comm communicator,
                         const std::atomic<bool>& cancelled, const char* collective)
    : group_(group), communicator_(communicator), cancelled_(cancelled), collective_(collective) {}

MpiMessages::~MpiMessages() {
  if (finished_count_ == requests_.size()) return;
  if (cancelled_) {
    abandon(std::chrono::milliseconds(200));
  } else if (std::uncaught_exceptions() > 0) {
    // An error of this rank: the others have posted their part, or will; unless they fail too.
    abandon(std::chrono::seconds(2));
  } else {
    wait();  // where this throws, nobody is left to tell, and the program ends
  }
}

void MpiMessages::receive(int peer, std::span<std::byte> bytes) {
  post(true, peer, bytes.data(), bytes.size());
}

void MpiMessages::send(int peer, std::span<const std::byte> bytes) {
  post(false, peer, const_cast<std::byte*>(bytes.data()), bytes.size());
}

void MpiMessages::post(bool receives, int peer, std::byte* data, std::size_t bytes) {
  for (std::size_t begin = 0; begin < bytes; begin += message_piece_bytes) {
    const auto count = static_cast<int>(std::min(message_piece_bytes, bytes - begin));
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(group_, collective_,
              receives
                  ? MPI_Irecv(data + begin, count, MPI_BYTE, peer, 0, communicator_, &request)
                  : MPI_Isend(data + begin, count, MPI_BYTE, peer, 0, communicator_, &request));
    requests_.push_back(request);
    messages_.push_back({peer, receives ? count : -1});
  }
  bytes_ += bytes;
}

bool MpiMessages::done() {
  if (finished_count_ == requests_.size()) return true;
  finished_.resize(requests_.size());
  statuses_.resize(requests_.size());
  int count = 0;
  const int code = MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &count,
                                finished_.data(), statuses_.data());
  if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS) check_mpi(group_, collective_, code);
  if (count == MPI_UNDEFINED) count = 0;
  finished_count_ += static_cast<std::size_t>(count);
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    if (code == MPI_ERR_IN_STATUS) check_mpi(group_, collective_, statuses_[i].MPI_ERROR);
    const Message& message = messages_[static_cast<std::size_t>(finished_[i])];
    if (message.receives < 0) continue;
    int received = 0;
    MPI_Get_count(&statuses_[i], MPI_BYTE, &received);
    if (received != message.receives)
      fail_collective(group_, collective_,
                      fmt::format("rank {} sent {} bytes, expected {}",
                                  group_.members()[static_cast<std::size_t>(message.peer)],
                                  received, message.receives));
  }
  return finished_count_ == requests_.size();
}

void MpiMessages::wait() {
  if (done()) return;
  const CollectiveScope scope(group_, collective_);
  const auto spin = shortest_spin + std::chrono::microseconds(static_cast<std::int64_t>(
                                        1e6 * static_cast<double>(bytes_) / spun_bytes_per_second));
  auto awake_until = Clock::now() + spin;
  for (std::size_t seen = finished_count_; !done();) {
    if (cancelled_) fail_collective(group_, collective_, "cancelled");
    // A message has come: so will the rest.
    if (finished_count_ != seen) awake_until = Clock::now() + spin;
    seen = finished_count_;
    if (Clock::now() < awake_until) {
      sched_yield();
    } else {
      const auto waited =
          std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - awake_until);
      std::this_thread::sleep_for(std::clamp(waited / wait_over_nap, nap, longest_nap));
    }
  }
}

/// Ends as much as can be ended within `patience`. Requests that are pending even then are leaked
/// on purpose: MPI has no way to take back a send, or a message that is half here, and the job is
/// about to be aborted.
void MpiMessages::abandon(std::chrono::duration<double> patience) noexcept {
  const auto deadline = Clock::now() + patience;
  if (cancelled_)
    for (std::size_t i = 0; i < requests_.size(); ++i)
      if (messages_[i].receives >= 0 && requests_[i] != MPI_REQUEST_NULL) MPI_Cancel(&requests_[i]);
  int all = 0;
  while (all == 0 && Clock::now() < deadline) {
    if (MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &all,
                    MPI_STATUSES_IGNORE) != MPI_SUCCESS)
      return;
    if (all == 0) std::this_thread::sleep_for(nap);
  }
}

}  // namespace scone
