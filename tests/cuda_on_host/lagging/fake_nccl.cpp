#include "fake_nccl.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "parallel/bf16.h"

namespace {

enum class Kind { all_reduce, reduce, reduce_scatter, all_gather, broadcast };

/// One rank's call of a collective; all but the pointers must be the same on every rank.
struct Call {
  Kind kind;
  const void* send;
  void* receive;
  std::size_t count;
  ncclDataType_t type;
  ncclRedOp_t op;
  int root;
  bool same_as(const Call& other) const {
    return kind == other.kind && count == other.count && type == other.type && op == other.op &&
           root == other.root;
  }
};

std::size_t bytes_of(ncclDataType_t type) {
  return type == ncclInt8 ? 1 : type == ncclBfloat16 ? 2 : 4;
}

/// The ranks of a communicator.
struct Clique {
  std::mutex mutex;
  std::condition_variable changed;
  std::size_t ranks = 0;
  struct Meeting {
    std::vector<Call> calls;  // by rank
    std::size_t arrived = 0, left = 0;
    ncclResult_t result = ncclInProgress;
  };
  std::map<std::int64_t, Meeting> meetings;  // by number of the collective
  std::map<std::pair<int, int>, std::deque<std::vector<std::byte>>> messages;
  bool aborted = false;
};

std::mutex registry_mutex;
std::map<std::string, std::shared_ptr<Clique>> cliques;
std::set<ncclComm_t> communicators;
std::atomic<int> abort_count = 0, destroy_count = 0, id_count = 0;

}  // namespace

struct ncclComm {
  std::shared_ptr<Clique> clique;
  int rank = 0;
  std::int64_t collectives = 0;
  std::atomic<int> looks = 0;  // that still say it is in progress
  std::atomic<ncclResult_t> error = ncclSuccess;
};

namespace {

struct Queued {
  ncclComm_t communicator;
  cudaStream_t stream;
  int order;  // sends first, then collectives, then receives
  std::function<ncclResult_t()> run;
};
thread_local int group_depth = 0;
thread_local std::vector<Queued> group;

float value_at(const Call& call, std::size_t i) {
  if (call.type == ncclFloat32) return static_cast<const float*>(call.send)[i];
  return scone::to_float(static_cast<const scone::Bf16*>(call.send)[i]);
}
void put(void* to, ncclDataType_t type, std::size_t i, float value) {
  if (type == ncclFloat32)
    static_cast<float*>(to)[i] = value;
  else
    static_cast<scone::Bf16*>(to)[i] = scone::to_bf16(value);
}

/// For all ranks at once, by the last of them. Results are set apart first, since they may be put
/// where the sources are.
void compute(const std::vector<Call>& calls) {
  const Call& first = calls.front();
  const std::size_t ranks = calls.size(), element = bytes_of(first.type);
  const bool scatters = first.kind == Kind::reduce_scatter;
  if (first.kind == Kind::all_gather || first.kind == Kind::broadcast) {
    std::vector<std::byte> all;
    for (std::size_t r = 0; r < ranks; ++r) {
      if (first.kind == Kind::broadcast && static_cast<int>(r) != first.root) continue;
      const auto* source = static_cast<const std::byte*>(calls[r].send);
      all.insert(all.end(), source, source + first.count * element);
    }
    for (const Call& call : calls) std::memcpy(call.receive, all.data(), all.size());
    return;
  }
  std::vector<float> sums(first.count * (scatters ? ranks : 1));
  for (std::size_t i = 0; i < sums.size(); ++i) {
    sums[i] = value_at(first, i);
    for (std::size_t r = 1; r < ranks; ++r) {
      const float value = value_at(calls[r], i);
      sums[i] = first.op == ncclSum   ? sums[i] + value
                : first.op == ncclMax ? std::max(sums[i], value)
                                      : std::min(sums[i], value);
    }
  }
  for (std::size_t r = 0; r < ranks; ++r) {
    if (first.kind == Kind::reduce && static_cast<int>(r) != first.root) continue;
    for (std::size_t i = 0; i < first.count; ++i)
      put(calls[r].receive, first.type, i, sums[(scatters ? r * first.count : 0) + i]);
  }
}

ncclResult_t meet(ncclComm_t communicator, const Call& call) {
  Clique& clique = *communicator->clique;
  const std::int64_t number = communicator->collectives++;
  std::unique_lock lock(clique.mutex);
  auto& meeting = clique.meetings[number];
  if (meeting.calls.empty()) meeting.calls.resize(clique.ranks, call);
  meeting.calls[static_cast<std::size_t>(communicator->rank)] = call;
  if (++meeting.arrived == clique.ranks) {
    meeting.result = std::all_of(meeting.calls.begin(), meeting.calls.end(),
                                 [&](const Call& other) { return call.same_as(other); })
                         ? ncclSuccess
                         : ncclInvalidUsage;
    if (meeting.result == ncclSuccess) compute(meeting.calls);
    clique.changed.notify_all();
  }
  clique.changed.wait(lock, [&] { return meeting.result != ncclInProgress || clique.aborted; });
  const ncclResult_t result = meeting.result != ncclInProgress ? meeting.result : ncclRemoteError;
  if (++meeting.left == clique.ranks) clique.meetings.erase(number);
  return result;
}

ncclResult_t run(Queued& queued) {
  while (cudaStreamQuery(queued.stream) == cudaErrorNotReady)
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  const ncclResult_t result = queued.run();
  if (result != ncclSuccess) return result;
  queued.communicator->looks = 2;
  return ncclInProgress;
}

ncclResult_t enqueue(Queued queued) {
  if (group_depth == 0) return run(queued);
  group.push_back(std::move(queued));
  return ncclSuccess;
}

ncclResult_t collective(ncclComm_t communicator, cudaStream_t stream, const Call& call) {
  return enqueue(
      {communicator, stream, 1, [communicator, call] { return meet(communicator, call); }});
}

}  // namespace

namespace fake_nccl {

void fail_all(ncclResult_t error) {
  const std::lock_guard lock(registry_mutex);
  for (ncclComm_t communicator : communicators) communicator->error = error;
}
int aborted() { return abort_count; }
int destroyed() { return destroy_count; }

}  // namespace fake_nccl

const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclRemoteError ? "remote process exited or there was a network error"
                                   : "unexpected use";
}
const char* ncclGetLastError(ncclComm_t) { return "what NCCL adds"; }
ncclResult_t ncclGetVersion(int* version) {
  *version = 22809;
  return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::memset(id, 0, sizeof *id);
  std::memcpy(id->internal, "id", 2);
  const int number = id_count++;  // read once: two groups that begin at a time are two
  id->internal[2] = static_cast<char>('a' + number % 16);
  id->internal[3] = static_cast<char>('a' + number / 16);
  return ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t* communicator, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (config->blocking != 0) return ncclInvalidUsage;
  auto made = std::make_unique<ncclComm>();
  const std::lock_guard lock(registry_mutex);
  auto& clique = cliques[std::string(id.internal)];
  if (clique == nullptr) clique = std::make_shared<Clique>();
  clique->ranks = static_cast<std::size_t>(ranks);
  made->clique = clique;
  made->rank = rank;
  made->looks = 3;
  *communicator = made.release();
  communicators.insert(*communicator);
  return ncclInProgress;
}

namespace {
void remove(ncclComm_t communicator) {
  const std::lock_guard lock(registry_mutex);
  communicators.erase(communicator);
  delete communicator;
}
}  // namespace

ncclResult_t ncclCommFinalize(ncclComm_t communicator) {
  communicator->looks = 2;
  return ncclInProgress;
}
ncclResult_t ncclCommDestroy(ncclComm_t communicator) {
  ++destroy_count;
  remove(communicator);
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t communicator) {
  ++abort_count;
  {
    const std::lock_guard lock(communicator->clique->mutex);
    communicator->clique->aborted = true;
  }
  communicator->clique->changed.notify_all();
  remove(communicator);
  return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t communicator, ncclResult_t* error) {
  *error = communicator->error;
  if (*error == ncclSuccess && communicator->looks > 0) {
    --communicator->looks;
    *error = ncclInProgress;
  }
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++group_depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  if (--group_depth > 0) return ncclSuccess;
  auto calls = std::exchange(group, {});
  std::stable_sort(calls.begin(), calls.end(),
                   [](const Queued& a, const Queued& b) { return a.order < b.order; });
  ncclResult_t result = ncclSuccess;
  for (auto& call : calls) {
    const ncclResult_t one = run(call);
    if (one != ncclSuccess && one != ncclInProgress) return one;
    result = one;
  }
  return result;
}

ncclResult_t ncclAllReduce(const void* send, void* receive, std::size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t communicator, cudaStream_t stream) {
  return collective(communicator, stream, {Kind::all_reduce, send, receive, count, type, op, 0});
}
ncclResult_t ncclReduce(const void* send, void* receive, std::size_t count, ncclDataType_t type,
                        ncclRedOp_t op, int root, ncclComm_t communicator, cudaStream_t stream) {
  return collective(communicator, stream, {Kind::reduce, send, receive, count, type, op, root});
}
ncclResult_t ncclReduceScatter(const void* send, void* receive, std::size_t receive_count,
                               ncclDataType_t type, ncclRedOp_t op, ncclComm_t communicator,
                               cudaStream_t stream) {
  return collective(communicator, stream,
                    {Kind::reduce_scatter, send, receive, receive_count, type, op, 0});
}
ncclResult_t ncclAllGather(const void* send, void* receive, std::size_t send_count,
                           ncclDataType_t type, ncclComm_t communicator, cudaStream_t stream) {
  return collective(communicator, stream,
                    {Kind::all_gather, send, receive, send_count, type, ncclSum, 0});
}
ncclResult_t ncclBroadcast(const void* send, void* receive, std::size_t count, ncclDataType_t type,
                           int root, ncclComm_t communicator, cudaStream_t stream) {
  return collective(communicator, stream,
                    {Kind::broadcast, send, receive, count, type, ncclSum, root});
}
ncclResult_t ncclSend(const void* send, std::size_t count, ncclDataType_t type, int peer,
                      ncclComm_t communicator, cudaStream_t stream) {
  return enqueue({communicator, stream, 0, [=] {
                    const auto* bytes = static_cast<const std::byte*>(send);
                    Clique& clique = *communicator->clique;
                    {
                      const std::lock_guard lock(clique.mutex);
                      clique.messages[{communicator->rank, peer}].emplace_back(
                          bytes, bytes + count * bytes_of(type));
                    }
                    clique.changed.notify_all();
                    return ncclSuccess;
                  }});
}
ncclResult_t ncclRecv(void* receive, std::size_t count, ncclDataType_t type, int peer,
                      ncclComm_t communicator, cudaStream_t stream) {
  return enqueue({communicator, stream, 2, [=] {
                    Clique& clique = *communicator->clique;
                    std::unique_lock lock(clique.mutex);
                    auto& queue = clique.messages[{peer, communicator->rank}];
                    clique.changed.wait(lock, [&] { return !queue.empty() || clique.aborted; });
                    if (queue.empty()) return ncclRemoteError;
                    const auto message = std::move(queue.front());
                    queue.pop_front();
                    if (message.size() != count * bytes_of(type)) return ncclInvalidUsage;
                    std::memcpy(receive, message.data(), message.size());
                    return ncclSuccess;
                  }});
}
