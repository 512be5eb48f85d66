#pragma once

// The few algorithms of CUB that our code calls, by their meaning.

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <vector>

#include "../../device_access.h"
#include "../cuda_runtime.h"

namespace cub {

struct DeviceRadixSort {
  /// Stable, by bits [begin_bit, end_bit) of the keys.
  template <class Key, class Value, class Count>
  static cudaError_t SortPairs(void* workspace, std::size_t& workspace_bytes, const Key* keys_in,
                               Key* keys_out, const Value* values_in, Value* values_out,
                               Count count, int begin_bit = 0, int end_bit = sizeof(Key) * 8,
                               cudaStream_t = nullptr) {
    const auto n = static_cast<std::size_t>(count);
    if (workspace == nullptr) {
      workspace_bytes = n * (sizeof(Key) + sizeof(Value)) + 256;
      return cudaSuccess;
    }
    if (workspace_bytes < n * (sizeof(Key) + sizeof(Value)) + 256) return cudaErrorInvalidValue;
    const cuda_on_host::DeviceAccess access;
    std::memset(workspace, 0xFF, workspace_bytes);
    using Bits = std::make_unsigned_t<Key>;
    const auto digits = [&](std::size_t i) {
      // Signed keys sort as numbers: their sign bit counts the other way.
      const Bits sign =
          std::is_signed_v<Key> ? static_cast<Bits>(Bits{1} << (sizeof(Key) * 8 - 1)) : Bits{0};
      const Bits bits = static_cast<Bits>(static_cast<Bits>(keys_in[i]) ^ sign);
      const int width = end_bit - begin_bit;
      const Bits shifted = static_cast<Bits>(bits >> begin_bit);
      if (width >= static_cast<int>(sizeof(Key) * 8)) return shifted;
      return static_cast<Bits>(shifted & static_cast<Bits>((Bits{1} << width) - 1));
    };
    std::vector<std::size_t> order(n);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return digits(a) < digits(b); });
    for (std::size_t i = 0; i < n; ++i) {
      keys_out[i] = keys_in[order[i]];
      values_out[i] = values_in[order[i]];
    }
    return cudaSuccess;
  }
};

struct DeviceScan {
  template <class In, class Out, class Count>
  static cudaError_t InclusiveSum(void* workspace, std::size_t& workspace_bytes, In in, Out out,
                                  Count count, cudaStream_t = nullptr) {
    if (workspace == nullptr) {
      workspace_bytes = 256;
      return cudaSuccess;
    }
    const cuda_on_host::DeviceAccess access;
    std::inclusive_scan(in, in + count, out);
    return cudaSuccess;
  }
  template <class In, class Out, class Count>
  static cudaError_t ExclusiveSum(void* workspace, std::size_t& workspace_bytes, In in, Out out,
                                  Count count, cudaStream_t = nullptr) {
    if (workspace == nullptr) {
      workspace_bytes = 256;
      return cudaSuccess;
    }
    using T = std::remove_cvref_t<decltype(*out)>;
    const cuda_on_host::DeviceAccess access;
    std::exclusive_scan(in, in + count, out, T{0});
    return cudaSuccess;
  }
};

}  // namespace cub
