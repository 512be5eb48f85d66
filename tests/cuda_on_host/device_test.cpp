// Opening a device, its memory, copies and waits, with a runtime that says what a test tells it to.

#include "parallel/cuda/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <stdexcept>
#include <vector>

#include "../model/cuda_test.h"
#include "host_runtime.h"
#include "parallel/cuda/transfer.h"
#include "parallel/error.h"

namespace scone {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

/// What the runtime says, put back at the end of a test.
class Device : public ::testing::Test {
 protected:
  Device() : kept_(cuda_on_host::runtime_state()) { test_cuda_backend(); }
  ~Device() override { cuda_on_host::runtime_state() = kept_; }

  cuda_on_host::RuntimeState& state_ = cuda_on_host::runtime_state();

 private:
  cuda_on_host::RuntimeState kept_;
};

TEST(Architectures, CodeServesItsMajorVersionAndPtxAllLaterOnes) {
  using cuda::architecture_is_built;
  EXPECT_TRUE(architecture_is_built("80-real,90", 8, 0));
  EXPECT_TRUE(architecture_is_built("80-real;90", 8, 9));
  EXPECT_FALSE(architecture_is_built("80-real,90", 7, 5));
  EXPECT_TRUE(architecture_is_built("80-real,90", 9, 0));
  EXPECT_TRUE(architecture_is_built("80-real,90", 12, 0));
  EXPECT_FALSE(architecture_is_built("80-real,90-real", 10, 0));
  EXPECT_TRUE(architecture_is_built("90-virtual", 10, 0));
  EXPECT_FALSE(architecture_is_built("86-real", 8, 0));
  EXPECT_TRUE(architecture_is_built("90a", 9, 0));
  EXPECT_FALSE(architecture_is_built("90a", 10, 0));
  EXPECT_THROW(architecture_is_built("native", 9, 0), std::logic_error);
}

TEST_F(Device, IsTheLocalRanksOneCountedRound) {
  state_.devices = 4;
  EXPECT_EQ(CudaDevice(3, 11).index(), 3);
  EXPECT_EQ(CudaDevice(5, 13).index(), 1);
}

TEST_F(Device, OpensOnceForOneLocalRank) {
  EXPECT_EQ(&open_cuda_device(0), &cuda_device());
  EXPECT_THROW(open_cuda_device(1), std::logic_error);
}

TEST_F(Device, DescribesItself) {
  EXPECT_THAT(describe_device(),
              AllOf(HasSubstr("cuda, "), HasSubstr("device 0 of 1"),
                    HasSubstr("compute capability 9.0"), HasSubstr("driver 13.0, runtime 13.0")));
}

TEST_F(Device, MissingDriverIsSaid) {
  state_.devices = 0;
  state_.driver_version = 0;
  EXPECT_THAT([] { CudaDevice(0, 3); },
              ThrowsMessage<InputError>(AllOf(HasSubstr("rank 3"), HasSubstr("no NVIDIA driver"),
                                              HasSubstr("compute.device: cpu"))));
}

TEST_F(Device, DriverTooOldIsSaidWithBothVersions) {
  state_.driver_version = 12040;
  state_.count_error = cudaErrorInsufficientDriver;
  EXPECT_THAT([] { CudaDevice(0, 0); },
              ThrowsMessage<InputError>(
                  AllOf(HasSubstr("too old"), HasSubstr("CUDA 12.4"), HasSubstr("needs 13.0"))));
}

TEST_F(Device, NoDeviceIsSaid) {
  state_.devices = 0;
  state_.count_error = cudaErrorNoDevice;
  EXPECT_THAT([] { CudaDevice(0, 0); }, ThrowsMessage<InputError>(HasSubstr("shows no device")));
}

TEST_F(Device, ArchitectureThatIsNotBuiltIsSaid) {
  state_.major = 7;
  state_.minor = 5;
  EXPECT_THAT([] { CudaDevice(0, 0); },
              ThrowsMessage<InputError>(AllOf(HasSubstr("compute capability 7.5"),
                                              HasSubstr("built for architectures 80-real,90"),
                                              HasSubstr("-DCMAKE_CUDA_ARCHITECTURES=75"))));
}

TEST_F(Device, TooLittleMemoryIsSaidWithTheSettingsToChange) {
  state_.total_memory = std::size_t{80} << 30;
  state_.free_memory = std::size_t{3} << 20;
  try {
    Tensor::zeros({2, 1 << 20}, DType::fp32, scone::Device::cuda);
    FAIL() << "nothing thrown";
  } catch (const OutOfDeviceMemory& error) {
    EXPECT_EQ(error.needed, std::size_t{8} << 20);
    EXPECT_EQ(error.free, std::size_t{3} << 20);
    for (const char* part : {"rank 0", "0.01 GiB", "trainer.microbatch_tokens",
                             "model.fgram.chunk_nodes", "compute.recompute", "parallel.main.tp"}) {
      EXPECT_THAT(error.what(), HasSubstr(part));
    }
  }
  state_.free_memory = std::size_t{9} << 20;
  EXPECT_EQ(Tensor::zeros({2, 1 << 20}, DType::fp32, scone::Device::cuda).elements(), 2 << 20);
}

TEST_F(Device, UploadsReadTheirSourceAtOnceAndWrapRound) {
  cuda::UploadRing ring(cuda_device().compute(), 512, 3);
  for (const std::size_t elements : {1U, 5U, 1000U, 63U, 64U, 65U}) {
    const cuda::DeviceBuffer target(elements * 8), second(elements * 8);
    std::vector<std::int64_t> values(elements), found(elements);
    std::iota(values.begin(), values.end(), 7);
    const std::vector<std::int64_t> expected = values;
    ring.upload(values.data(), target.data(), elements * 8);
    std::fill(values.begin(), values.end(), -1);
    ring.upload(values.data(), second.data(), elements * 8);
    cuda::Downloader downloader(cuda_device().compute(), 256);
    downloader.download(target.data(), found.data(), elements * 8);
    EXPECT_EQ(found, expected);
    downloader.download(second.data(), found.data(), elements * 8);
    EXPECT_EQ(found, values);
  }
}

TEST_F(Device, UploadWaitsForTheBlockThatItUsesAgain) {
  cuda::UploadRing ring(cuda_device().compute(), 256, 2);
  const cuda::DeviceBuffer target(4096);
  const std::vector<std::byte> values(4096);
  const std::int64_t before = state_.event_queries;
  ring.upload(values.data(), target.data(), 4096);
  EXPECT_GE(state_.event_queries - before, 14);
}

TEST_F(Device, WaitsPollUntilTheWorkIsDone) {
  cuda::Event event;
  event.record(cuda_device().compute());
  state_.polls_until_done = 30;
  cuda_device().wait(event);
  EXPECT_EQ(state_.polls_until_done, 0);
  state_.polls_until_done = 30;
  cuda_device().wait(cuda_device().communication());
  EXPECT_EQ(state_.polls_until_done, 0);
}

TEST_F(Device, FailedHealthCheckEndsAWait) {
  state_.polls_until_done = 1 << 30;
  int calls = 0;
  auto check = cuda_device().add_health_check([&calls] {
    if (++calls == 3) throw std::runtime_error("rank 5 has failed");
  });
  EXPECT_THAT([] { cuda_device().wait(cuda_device().compute()); },
              ThrowsMessage<std::runtime_error>(HasSubstr("rank 5 has failed")));
  EXPECT_EQ(calls, 3);
  check.reset();
  state_.polls_until_done = 4000;  // longer than a wait without checks
  cuda_device().wait(cuda_device().compute());
  EXPECT_EQ(calls, 3);
}

TEST_F(Device, FailedWorkIsAnErrorOfTheWait) {
  state_.work_error = cudaErrorIllegalAddress;
  EXPECT_THAT([] { cuda_device().wait(cuda_device().compute()); },
              ThrowsMessage<CudaError>(
                  AllOf(HasSubstr("rank 0, CUDA device 0"), HasSubstr("cudaErrorIllegalAddress"))));
}

}  // namespace
}  // namespace scone
