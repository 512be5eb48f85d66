// Copies through pinned memory on a stream that lags: blocks that were used again too early show.
#include "parallel/cuda/transfer.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <thread>
#include <vector>

namespace scone {
namespace {

std::vector<std::int32_t> numbers(std::size_t elements, std::int32_t first) {
  std::vector<std::int32_t> values(elements);
  std::iota(values.begin(), values.end(), first);
  return values;
}

TEST(Transfers, SourcesMayChangeAtOnceAndBlocksAreUsedInTurn) {
  open_cuda_device(0);
  const cudaStream_t stream = cuda_device().compute();
  cuda::UploadRing ring(stream, 1024, 3);
  cuda::Downloader downloader(stream, 512);
  constexpr std::size_t kElements = 2500;  // several times around
  for (std::int32_t round = 0; round < 5; ++round) {
    const cuda::DeviceBuffer first(kElements * 4), second(kElements * 4);
    std::vector<std::int32_t> values = numbers(kElements, round);
    ring.upload(values.data(), first.data(), kElements * 4);
    values = numbers(kElements, 1000 * round);
    ring.upload(values.data(), second.data(), kElements * 4);
    std::fill(values.begin(), values.end(), -1);
    std::vector<std::int32_t> found(kElements);
    downloader.download(first.data(), found.data(), kElements * 4);
    EXPECT_EQ(found, numbers(kElements, round));
    downloader.download(second.data(), found.data(), kElements * 4);
    EXPECT_EQ(found, numbers(kElements, 1000 * round));
  }
}

TEST(Transfers, ThreadsShareThem) {
  open_cuda_device(0);
  const cudaStream_t stream = cuda_device().compute();
  cuda::UploadRing ring(stream, 1024, 2);
  cuda::Downloader downloader(stream, 512);
  const auto work = [&](std::int32_t first) {
    constexpr std::size_t kElements = 1100;
    const cuda::DeviceBuffer target(kElements * 4);
    std::vector<std::int32_t> found(kElements);
    for (std::int32_t round = 0; round < 4; ++round) {
      const std::vector<std::int32_t> values = numbers(kElements, first + round);
      ring.upload(values.data(), target.data(), kElements * 4);
      downloader.download(target.data(), found.data(), kElements * 4);
      EXPECT_EQ(found, values);
    }
  };
  std::thread other([&] { work(100000); });
  work(0);
  other.join();
}

}  // namespace
}  // namespace scone
