#include "parallel/cuda/transfer.h"

#include <algorithm>
#include <cstring>

namespace scone::cuda {
namespace {
constexpr std::size_t kAlignment = 256;  // of each copy's source
}

UploadRing::UploadRing(cudaStream_t stream, std::size_t block_bytes, int blocks)
    : stream_(stream),
      block_bytes_(block_bytes),
      memory_(block_bytes * static_cast<std::size_t>(blocks)),
      sent_(static_cast<std::size_t>(blocks)) {}

void UploadRing::next_block() {
  sent_[block_].record(stream_);
  block_ = (block_ + 1) % sent_.size();
  used_ = 0;
  cuda_device().wait(sent_[block_]);
}

void UploadRing::upload(const void* source, void* target, std::size_t bytes) {
  const auto* from = static_cast<const std::byte*>(source);
  upload([from](std::byte* memory, std::size_t begin,
                std::size_t count) { std::memcpy(memory, from + begin, count); },
         target, bytes, 1);
}

void UploadRing::upload(const Write& write, void* target, std::size_t elements,
                        std::size_t element_bytes) {
  const std::lock_guard lock(mutex_);
  cuda_device().make_current();
  for (std::size_t begin = 0; begin < elements;) {
    if (block_bytes_ - used_ < element_bytes) next_block();
    const std::size_t count = std::min(elements - begin, (block_bytes_ - used_) / element_bytes);
    std::byte* memory = memory_.data() + block_ * block_bytes_ + used_;
    write(memory, begin, count);
    check(cudaMemcpyAsync(static_cast<std::byte*>(target) + begin * element_bytes, memory,
                          count * element_bytes, cudaMemcpyHostToDevice, stream_),
          "cudaMemcpyAsync to the device");
    const std::size_t end = used_ + count * element_bytes;
    used_ = std::min(block_bytes_, (end + kAlignment - 1) / kAlignment * kAlignment);
    begin += count;
  }
}

Downloader::Downloader(cudaStream_t stream, std::size_t block_bytes)
    : stream_(stream), block_bytes_(block_bytes), memory_(2 * block_bytes) {}

void Downloader::download(const void* source, void* target, std::size_t bytes) {
  auto* to = static_cast<std::byte*>(target);
  download(
      source,
      [to](const std::byte* memory, std::size_t begin, std::size_t count) {
        std::memcpy(to + begin, memory, count);
      },
      bytes, 1);
}

void Downloader::download(const void* source, const Read& read, std::size_t elements,
                          std::size_t element_bytes) {
  const std::lock_guard lock(mutex_);
  cuda_device().make_current();
  const std::size_t at_once = block_bytes_ / element_bytes;
  const std::size_t blocks = (elements + at_once - 1) / at_once;
  const auto count_of = [&](std::size_t block) {
    return std::min(at_once, elements - block * at_once);
  };
  const auto memory_of = [&](std::size_t block) {
    return memory_.data() + block % 2 * block_bytes_;
  };
  for (std::size_t block = 0; block <= blocks; ++block) {
    if (block < blocks) {
      check(cudaMemcpyAsync(memory_of(block),
                            static_cast<const std::byte*>(source) + block * at_once * element_bytes,
                            count_of(block) * element_bytes, cudaMemcpyDeviceToHost, stream_),
            "cudaMemcpyAsync to the host");
      arrived_[block % 2].record(stream_);
    }
    if (block > 0) {
      cuda_device().wait(arrived_[(block - 1) % 2]);
      read(memory_of(block - 1), (block - 1) * at_once, count_of(block - 1));
    }
  }
}

}  // namespace scone::cuda
