#pragma once

#include <mpi.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "parallel/communicator.h"

namespace scone {

/// Throws as fail_collective where an MPI call of `collective` failed with `code`.
void check_mpi(const Communicator& group, const char* collective, int code);

/// Messages under way between the ranks of one group: what one collective sends and receives.
/// Collectives of one group match their messages by MPI's order alone, without tags of their own:
/// between two ranks messages are received in the order in which they are sent, and every rank
/// posts those of its collectives in the same order, in pieces of the same sizes. So it does not
/// matter in which order the collectives are waited for.
class MpiMessages {
 public:
  /// cancelled: makes waits throw; lives as long as group and communicator do.
  MpiMessages(const Communicator& group, MPI_Comm communicator, const std::atomic<bool>& cancelled,
              const char* collective);
  /// Waits for what is not done, so that the buffers may go; see abandon() for the exceptions.
  ~MpiMessages();
  MpiMessages(const MpiMessages&) = delete;
  MpiMessages& operator=(const MpiMessages&) = delete;

  void receive(int peer, std::span<std::byte> bytes);
  void send(int peer, std::span<const std::byte> bytes);
  /// Makes progress, without blocking.
  bool done();
  /// Spins for about as long as the messages take, then sleeps between looks, so that a wait for a
  /// rank that is busy leaves the core to others. Throws once the group is cancelled.
  void wait();

 private:
  void post(bool receives, int peer, std::byte* data, std::size_t bytes);
  void abandon(std::chrono::duration<double> patience) noexcept;

  struct Message {
    int peer;
    std::int64_t receives;  // bytes to receive, -1: sends
  };
  const Communicator& group_;
  MPI_Comm communicator_;
  const std::atomic<bool>& cancelled_;
  const char* collective_;
  std::vector<MPI_Request> requests_;
  std::vector<Message> messages_;  // by request
  std::vector<int> finished_;      // MPI_Testsome's answer
  std::vector<MPI_Status> statuses_;
  std::size_t bytes_ = 0, finished_count_ = 0;
};

}  // namespace scone
