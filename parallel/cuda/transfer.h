#pragma once

#include <cstddef>
#include <functional>
#include <mutex>
#include <vector>

#include "parallel/cuda/device.h"

namespace scone::cuda {

/// Copies host memory to the device on one stream, by way of pinned blocks that are used in turn: a
/// call returns when it has read its source, not when the copy is done. Any thread may use it.
class UploadRing {
 public:
  explicit UploadRing(cudaStream_t stream, std::size_t block_bytes = std::size_t{4} << 20,
                      int blocks = 8);

  void upload(const void* source, void* target, std::size_t bytes);
  /// write(memory, begin, count) puts elements [begin, begin + count) of what is to arrive at
  /// target, element_bytes each, into pinned memory.
  using Write = std::function<void(std::byte* memory, std::size_t begin, std::size_t count)>;
  void upload(const Write& write, void* target, std::size_t elements, std::size_t element_bytes);

 private:
  void next_block();

  cudaStream_t stream_;
  std::size_t block_bytes_;
  PinnedBuffer memory_;
  std::vector<Event> sent_;  // a block's last copy
  std::size_t block_ = 0, used_ = 0;
  std::mutex mutex_;
};

/// Copies device memory to the host, after all work given to the stream before; returns when it is
/// there. The copy of one block runs while the block before is read. Any thread may use it.
class Downloader {
 public:
  explicit Downloader(cudaStream_t stream, std::size_t block_bytes = std::size_t{4} << 20);

  void download(const void* source, void* target, std::size_t bytes);
  /// read(memory, begin, count) takes elements [begin, begin + count) from pinned memory.
  using Read = std::function<void(const std::byte* memory, std::size_t begin, std::size_t count)>;
  void download(const void* source, const Read& read, std::size_t elements,
                std::size_t element_bytes);

 private:
  cudaStream_t stream_;
  std::size_t block_bytes_;
  PinnedBuffer memory_;
  Event arrived_[2];
  std::mutex mutex_;
};

}  // namespace scone::cuda
