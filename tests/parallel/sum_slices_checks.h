#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "parallel/cuda/sum_slices.h"
#include "tests/parallel/device_memory.h"

namespace scone {

/// Asserts that sum_slices adds in rank order, in fp32, and rounds once, in slices of so many
/// elements, also where they are not aligned to 16 bytes and where the sum replaces a summand.
inline void check_sum_slices(std::initializer_list<std::size_t> counts) {
  for (const int ranks : {1, 2, 3, 8})
    for (const std::size_t count : counts)
      for (const int own : {0, ranks - 1})
        for (const std::size_t shift : {std::size_t{0}, std::size_t{1}}) {
          const auto size = static_cast<std::size_t>(ranks);
          std::vector<std::vector<Bf16>> of_rank(size);
          std::vector<Bf16> others;
          for (std::size_t r = 0; r < size; ++r) {
            for (std::size_t i = 0; i < shift + count; ++i)
              of_rank[r].push_back(to_bf16(1.0f / static_cast<float>(1 + (i * 7 + 13 * r) % 101)));
            if (static_cast<int>(r) != own)
              others.insert(others.end(), of_rank[r].begin() + static_cast<std::ptrdiff_t>(shift),
                            of_rank[r].end());
          }
          TestBuffer<Bf16> own_buffer(device_memory, of_rank[static_cast<std::size_t>(own)]);
          TestBuffer<Bf16> other_buffer(device_memory, others);
          Bf16* slice = own_buffer.span().data() + shift;
          cuda::sum_slices(slice, other_buffer.span().data(), own, ranks,
                           static_cast<std::int64_t>(count), slice, cuda_device().compute());
          const auto sums = own_buffer.values();
          std::int64_t wrong = 0;
          for (std::size_t i = 0; i < shift + count; ++i) {
            float sum = to_float(of_rank[0][i]);
            for (std::size_t r = 1; r < size; ++r) sum += to_float(of_rank[r][i]);
            wrong +=
                sums[i] != (i < shift ? of_rank[static_cast<std::size_t>(own)][i] : to_bf16(sum));
          }
          EXPECT_EQ(wrong, 0) << "of " << count << " on " << ranks << " ranks";
        }
}

}  // namespace scone
