#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "checkpoint/checkpoint_manifest.h"
#include "checkpoint/tensor_slice.h"
#include "parallel/communicator.h"

namespace scone {

struct CheckpointOptions {
  int keep = 3;                      // newest ones that stay; < 1: all
  std::int64_t permanent_every = 0;  // steps whose multiples stay for good; 0: none
  bool async = false;                // write on a thread of the writer's own
};

/// How a save ended; the same on every rank.
struct SaveOutcome {
  std::int64_t step = 0;
  std::filesystem::path path;  // of the checkpoint; empty: it was not written
  std::string error;           // which rank failed, and why
  std::string warning;         // saved, but not yet for sure, or old ones are left (rank 0's view)
  std::int64_t bytes = 0;      // of all ranks' files
  double seconds = 0;          // this rank's, from the first byte to the rename
  bool saved() const { return error.empty(); }
};

/// Writes checkpoints, every rank of a group its own slices:
///
/// 1. All tell their slices; rank 0 checks that they hold each tensor exactly once and that there
///    is space for all, and makes the folder step-XXXXXXXX.tmp.
/// 2. Every rank that has something writes and fsyncs its file; all agree that all succeeded.
/// 3. Rank 0 writes and fsyncs manifest.json, renames the folder, fsyncs its parent, and then
///    removes old checkpoints.
///
/// A rank that fails at any point ends the save on all: the temporary folder is removed, and the
/// old checkpoints stay. So they do where a writer is killed; the next save removes what it left.
/// A rank that has written waits for the slowest one in an all_gather, so a watchdog's timeout must
/// be longer than a file takes to write.
class CheckpointWriter {
 public:
  /// communicator: the writer's own (a split of the world); of it only all_gather of bytes and
  /// cancel are used. checkpoints: one folder that all ranks see.
  CheckpointWriter(std::filesystem::path checkpoints, std::unique_ptr<Communicator> communicator,
                   CheckpointOptions options);
  /// close()
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Collective. Waits for the save before it; async: copies the slices to host memory that is
  /// reused between saves, and returns; else writes, and returns. The boxes of one name hold the
  /// global tensor exactly once over all ranks; a slice may be empty. What goes wrong is in the
  /// outcome; throws std::logic_error for a slice that is not fp32 on the host.
  void save(const CheckpointManifest& manifest, std::span<const TensorSlice> slices);

  /// Waits for the save under way.
  void wait();
  /// Whether one is under way in the background.
  bool is_saving() const { return saving_; }

  /// Waits for the save under way; when an exception is on its way, cancels it. Nothing may be
  /// saved after that.
  void close();

  /// Outcome of a save that has ended, each once, the oldest first.
  std::optional<SaveOutcome> take_outcome();

  /// How long the last save() kept its caller.
  double blocked_seconds() const { return blocked_seconds_; }

 private:
  SaveOutcome write(const CheckpointManifest& manifest, std::span<const TensorSlice> slices);
  std::string prepare(const CheckpointManifest& manifest,
                      const std::vector<std::string>& descriptions) const;
  void finish(const CheckpointManifest& manifest, const std::vector<std::string>& descriptions,
              const std::vector<std::string>& results, SaveOutcome& outcome) const;
  std::vector<std::string> gather(const std::string& text);
  std::vector<TensorSlice> copy_to_host(std::span<const TensorSlice> slices);
  void set_outcome(SaveOutcome outcome);

  std::filesystem::path checkpoints_;
  std::unique_ptr<Communicator> communicator_;
  CheckpointOptions options_;
  Tensor host_copy_;  // of the save under way
  std::thread thread_;
  std::atomic<bool> saving_ = false;
  double blocked_seconds_ = 0;
  int exceptions_at_start_;
  std::mutex mutex_;
  std::deque<SaveOutcome> outcomes_;  // not taken yet; guarded by mutex_
};

}  // namespace scone
