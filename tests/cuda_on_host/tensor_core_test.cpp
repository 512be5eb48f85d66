#include "model/ops/cuda/tensor_core.h"

#include "attention_cases.h"
#include "model/ops/cuda/attention_tiles.h"
#include "model/ops/cuda/kernel_tools.h"
#include "parallel/cuda/launch.h"

// Tests of the host's stand-ins for PTX, as the kernels use them: in whole products.

namespace scone::cuda {
namespace {

constexpr int kRows = 64, kOthers = 32, kThreads = 128;

/// a: [64, kWidth], b: [32, kWidth]. by_rows = a b^T [64, 32], by_columns = by_rows b [64, kWidth]
/// with by_rows rounded to bf16. Four warps take 16 rows each.
template <int kWidth, bool kHeld>
void products(const __nv_bfloat16* a, const __nv_bfloat16* b, float* by_rows, float* by_columns) {
  __nv_bfloat16* const a_tile = dynamic_shared<__nv_bfloat16>();
  __nv_bfloat16* const b_tile = a_tile + kRows * kWidth;
  load_tile<kWidth, kRows, kThreads>(a_tile, a, kWidth, kRows);
  load_tile<kWidth, kOthers, kThreads>(b_tile, b, kWidth, kOthers);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  const int lane = lane_index(), row = 16 * warp_index(), g = lane / 4, t = lane % 4;
  RowsOfA<kWidth, kHeld> rows[1];
  rows[0].set(a_tile, row);
  float s[1][kOthers / 8][4], c[1][kWidth / 8][4] = {};
  multiply_by_rows(s, rows, b_tile, 0);
  multiply_by_columns<kWidth>(c, s, b_tile, 0);
  for (int i = 0; i < 4; ++i) {
    const int at = row + g + 8 * (i / 2), column = 2 * t + i % 2;
    for (int n = 0; n < kOthers / 8; ++n) by_rows[at * kOthers + 8 * n + column] = s[0][n][i];
    for (int n = 0; n < kWidth / 8; ++n) by_columns[at * kWidth + 8 * n + column] = c[0][n][i];
  }
}

template <int kWidth, bool kHeld>
void run_products() {
  const auto a = normal_values<__nv_bfloat16>(kRows * kWidth, 1);
  const auto b = normal_values<__nv_bfloat16>(kOthers * kWidth, 2);
  const DeviceArray<__nv_bfloat16> a_device(a), b_device(b);
  const DeviceArray<float> by_rows(kRows * kOthers);
  const DeviceArray<float> by_columns(std::size_t{kRows} * kWidth);
  SCONE_LAUNCH((products<kWidth, kHeld>),
               (LaunchShape{1, kThreads, std::size_t{2} * kWidth * (kRows + kOthers)}), nullptr,
               a_device.data(), b_device.data(), by_rows.data(), by_columns.data());
  const Doubles x = doubles_of(a), y = doubles_of(b), found = by_rows.doubles();
  Doubles expected(kRows * kOthers), expected_columns(std::size_t{kRows} * kWidth);
  for (std::size_t i = 0; i < kRows; ++i) {
    for (std::size_t j = 0; j < kOthers; ++j) {
      double& sum = expected[i * kOthers + j];
      for (std::size_t k = 0; k < kWidth; ++k) sum += x[i * kWidth + k] * y[j * kWidth + k];
      const auto rounded = static_cast<__nv_bfloat16>(static_cast<float>(found[i * kOthers + j]));
      for (std::size_t k = 0; k < kWidth; ++k) {
        expected_columns[i * kWidth + k] +=
            static_cast<double>(static_cast<float>(rounded)) * y[j * kWidth + k];
      }
    }
  }
  const std::string name = std::to_string(kWidth) + " wide" + (kHeld ? ", held" : "");
  expect_near<float>(name + ", by rows", found, expected, kOthers, kWidth);
  expect_near<float>(name + ", by columns", by_columns.doubles(), expected_columns, kWidth,
                     kOthers);
}

TEST(TensorCore, ProductsOfTilesAgreeWithTheReference) {
  run_products<32, true>();
  run_products<64, true>();
  run_products<64, false>();
  run_products<96, false>();
  run_products<128, false>();
}

/// found[0 .. 4): a copy as seen at once, after other groups were waited for, after its wait, and
/// an absent one.
void copies(const float* source, float* found) {
  SCONE_SHARED(uint4, memory, [2]);
  float* const target = reinterpret_cast<float*>(&memory[0]);
  copy_async_16(target, source, true);
  copy_async_16(target + 4, source, false);
  copy_async_commit();
  found[0] = target[0];
  copy_async_commit();
  copy_async_wait<1>();
  found[1] = target[0];
  found[2] = target[3];
  found[3] = target[4];
  copy_async_16(target, source + 4, true);
  copy_async_commit();
  copy_async_commit();
  copy_async_wait<2>();
  found[4] = target[0];
  copy_async_wait<0>();
  found[5] = target[0];
}

TEST(TensorCore, CopiesArriveAtTheirWait) {
  const DeviceArray<float> source(std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8}), found(6);
  SCONE_LAUNCH(copies, (LaunchShape{1, 1}), nullptr, source.data(), found.data());
  const std::vector<float> seen = found.values();
  EXPECT_TRUE(std::isnan(seen[0])) << "a copy arrived before its wait: " << seen[0];
  EXPECT_EQ(std::vector<float>(seen.begin() + 1, seen.end()), (std::vector<float>{1, 4, 0, 1, 5}));
}

void never_waits(const float* source) {
  SCONE_SHARED(uint4, memory, [1]);
  copy_async_16(&memory[0], source, true);
  copy_async_commit();
}

void waits_for_nothing(float* found) {
  SCONE_SHARED(float, memory, [4]);
  memory[0] = 7.0F;
  copy_async_wait<0>();
  found[0] = memory[0];
}

TEST(TensorCore, CopiesOfABlockEndWithIt) {
  const DeviceArray<float> source(std::vector<float>{1, 2, 3, 4}), found(1);
  SCONE_LAUNCH(never_waits, (LaunchShape{1, 1}), nullptr, source.data());
  SCONE_LAUNCH(waits_for_nothing, (LaunchShape{1, 1}), nullptr, found.data());
  EXPECT_EQ(found.values()[0], 7.0F);
}

void misaligned(const float* source) {
  SCONE_SHARED(float, memory, [8]);
  copy_async_16(memory + 1, source, true);
}

TEST(TensorCore, AMisalignedCopyIsAnError) {
  const DeviceArray<float> source(std::vector<float>{1, 2, 3, 4});
  EXPECT_THROW(SCONE_LAUNCH(misaligned, (LaunchShape{1, 1}), nullptr, source.data()),
               cuda_on_host::BlockError);
}

TEST(TensorCore, RoundsToTheNearestBf16) {
  for (const float value : {1.0F, -1.00390625F, 1.01171875F, 3.1415927F, 1e-40F, 3.4e38F}) {
    const std::uint32_t pair = pack_bf16(value, -value);
    EXPECT_EQ(pair & 0xFFFFU, __bfloat16_as_ushort(__nv_bfloat16(value)));
    EXPECT_EQ(pair >> 16, __bfloat16_as_ushort(__nv_bfloat16(-value)));
  }
}

TEST(TensorCore, TilesMeetNoBankConflicts) {
  const auto check_width = []<int kWidth>() {
    for (int first = 0; first < 16; ++first) {
      for (int chunk = 0; chunk < kWidth / 8; ++chunk) {
        std::vector<bool> used(8);
        for (int row = first; row < first + 8; ++row) {
          const int offset = tile_offset<kWidth>(row, chunk);
          EXPECT_EQ(offset / kWidth, row);
          const auto banks = static_cast<std::size_t>(offset * 2 % 128 / 16);
          EXPECT_FALSE(used[banks]) << kWidth << " wide, row " << row << ", chunk " << chunk;
          used[banks] = true;
        }
      }
    }
  };
  check_width.operator()<32>();
  check_width.operator()<64>();
  check_width.operator()<96>();
  check_width.operator()<128>();
}

}  // namespace
}  // namespace scone::cuda
