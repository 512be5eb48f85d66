#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#ifdef SCONE_CUDA_ON_HOST
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#endif

namespace scone::cuda {

// The PTX that kernels use: bf16 tensor-core products, the loads of their fragments from shared
// memory, and asynchronous copies into it (PTX ISA, "Matrix multiply-accumulate operation using
// mma instruction", "ldmatrix", "cp.async"). All lanes of a warp call the fragment functions
// together. With g = lane / 4 and t = lane % 4, two bf16 to a register, the lower index in the
// lower half:
//   a[0..3] of A [16 x 16]: row g, g + 8, g, g + 8; columns 2t, 2t, 2t + 8, 2t + 8 and the next
//   b[0..1] of B [16 x 8]: rows 2t, 2t + 8 and the next; column g
//   c[0..3] of C [16 x 8]: row g, g, g + 8, g + 8; columns 2t, 2t + 1, 2t, 2t + 1

#ifdef SCONE_CUDA_ON_HOST

namespace on_host {

constexpr unsigned kWords = 6, kMostThreads = cuda_on_host::kMostThreads;

struct PendingCopy {
  void* target;
  const void* source;  // null: zeros
};

/// What the running thread of a kernel has under way. Made anew for each block.
struct ThreadState {
  std::vector<std::vector<PendingCopy>> groups{1};  // the last one is not committed yet
  unsigned exchange = 0;                            // which of two boards comes next
  std::uint32_t board[2][kWords] = {};
};

inline unsigned thread_in_block() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}

inline ThreadState* thread_states() {
  static thread_local std::vector<ThreadState> states(kMostThreads);
  return states.data();
}

inline ThreadState& thread_state() {
  // Shared memory starts out poisoned, which tells a new block.
  static const char tag = 0;
  auto* known = static_cast<unsigned char*>(cuda_on_host::static_shared(&tag, kMostThreads));
  const unsigned thread = thread_in_block();
  if (known[thread] == 0xFF) {
    known[thread] = 0;
    thread_states()[thread] = ThreadState();
  }
  return thread_states()[thread];
}

/// Shows the words of every lane to every lane. A lane writes to a board again only after all
/// lanes have come to the exchange in between, so none still reads it.
class Exchange {
 public:
  template <unsigned kCount>
  explicit Exchange(const std::uint32_t (&words)[kCount]) : at_(thread_state().exchange) {
    static_assert(kCount <= kWords);
    ThreadState& mine = thread_state();
    for (unsigned i = 0; i < kCount; ++i) mine.board[at_][i] = words[i];
    mine.exchange ^= 1U;
    __syncwarp();
    first_ = thread_states() + thread_in_block() / 32 * 32;
  }
  std::uint32_t word(unsigned lane, unsigned i) const { return first_[lane].board[at_][i]; }

 private:
  unsigned at_;
  const ThreadState* first_;
};

inline float low_half(std::uint32_t pair) { return std::bit_cast<float>(pair << 16); }
inline float high_half(std::uint32_t pair) { return std::bit_cast<float>(pair & 0xFFFF0000U); }

inline std::uint32_t bits_of(float value) {
  if (std::isnan(value)) return 0x7FFFU;
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16;
}

inline std::uint64_t address_words(const void* address, std::uint32_t (&words)[2]) {
  const auto value = reinterpret_cast<std::uintptr_t>(address);
  words[0] = static_cast<std::uint32_t>(value);
  words[1] = static_cast<std::uint32_t>(std::uint64_t{value} >> 32);
  return value;
}

/// ldmatrix: lane 8 m + r gives the address of row r of matrix m.
inline void load_matrices(std::uint32_t (&fragment)[4], const void* row, bool transposed) {
  std::uint32_t words[2];
  if (address_words(row, words) % 16 != 0) {
    cuda_on_host::fail("ldmatrix from an address that is no multiple of 16",
                       std::source_location::current());
  }
  const Exchange rows(words);
  const unsigned lane = thread_in_block() % 32, g = lane / 4, t = lane % 4;
  const auto element = [&](unsigned matrix, unsigned r, unsigned column) {
    const std::uint64_t address =
        std::uint64_t{rows.word(8 * matrix + r, 1)} << 32 | rows.word(8 * matrix + r, 0);
    std::uint16_t value;
    std::memcpy(&value,
                reinterpret_cast<const char*>(static_cast<std::uintptr_t>(address)) + 2 * column,
                sizeof value);
    return std::uint32_t{value};
  };
  for (unsigned m = 0; m < 4; ++m) {
    fragment[m] = transposed ? element(m, 2 * t, g) | element(m, 2 * t + 1, g) << 16
                             : element(m, g, 2 * t) | element(m, g, 2 * t + 1) << 16;
  }
  // The others may write to these rows once they are past the next __syncwarp, so none may be
  // there before all have read.
  __syncwarp();
}

inline void deliver(std::size_t groups_left) {
  ThreadState& state = thread_state();
  while (state.groups.size() > groups_left + 1) {
    for (const PendingCopy& copy : state.groups.front()) {
      if (copy.source == nullptr) {
        std::memset(copy.target, 0, 16);
      } else {
        std::memcpy(copy.target, copy.source, 16);
      }
    }
    state.groups.erase(state.groups.begin());
  }
}

}  // namespace on_host

inline void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                         std::uint32_t b1) {
  const std::uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const on_host::Exchange lanes(words);
  const unsigned lane = on_host::thread_in_block() % 32, g = lane / 4, t = lane % 4;
  for (unsigned half = 0; half < 2; ++half) {       // columns 2t + half of C
    for (unsigned below = 0; below < 2; ++below) {  // rows g + 8 below
      float sum = c[2 * below + half];
      for (unsigned k = 0; k < 8; ++k) {  // pairs along the summed axis
        const std::uint32_t x = lanes.word(4 * g + k % 4, below + 2 * (k / 4));
        const std::uint32_t y = lanes.word(4 * (2 * t + half) + k % 4, 4 + k / 4);
        sum += on_host::low_half(x) * on_host::low_half(y) +
               on_host::high_half(x) * on_host::high_half(y);
      }
      c[2 * below + half] = sum;
    }
  }
}

inline void load_matrices(std::uint32_t (&fragment)[4], const void* row) {
  on_host::load_matrices(fragment, row, false);
}

inline void load_matrices_transposed(std::uint32_t (&fragment)[4], const void* row) {
  on_host::load_matrices(fragment, row, true);
}

/// Delivers at the wait, not before, so that a missing wait shows.
inline void copy_async_16(void* shared, const void* global, bool present) {
  if (reinterpret_cast<std::uintptr_t>(shared) % 16 != 0 ||
      (present && reinterpret_cast<std::uintptr_t>(global) % 16 != 0)) {
    cuda_on_host::fail("cp.async of 16 bytes at an address that is no multiple of 16",
                       std::source_location::current());
  }
  on_host::thread_state().groups.back().push_back({shared, present ? global : nullptr});
}

inline void copy_async_commit() { on_host::thread_state().groups.emplace_back(); }

template <int kGroupsLeft>
void copy_async_wait() {
  on_host::deliver(static_cast<std::size_t>(kGroupsLeft));
}

inline float exp2_approximate(float x) { return std::exp2(x); }

inline std::uint32_t pack_bf16(float low, float high) {
  return on_host::bits_of(low) | on_host::bits_of(high) << 16;
}

#else

/// C += A B, sums in fp32.
__device__ __forceinline__ void multiply_add(float (&c)[4], const std::uint32_t (&a)[4],
                                             std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Four 8 x 8 matrices of bf16 from shared memory: lane 8 m + r gives the address, a multiple of
/// 16, of row r of matrix m; fragment[m] is columns 2t, 2t + 1 of its row g.
__device__ __forceinline__ void load_matrices(std::uint32_t (&fragment)[4], const void* row) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address));
}

/// The same of the transposed matrices: rows 2t, 2t + 1 of column g.
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&fragment)[4],
                                                         const void* row) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address));
}

/// Copies 16 bytes to shared memory, or zeros where not present (`global` is not read then). Both
/// addresses are multiples of 16. Visible to this thread after copy_async_wait, to others after
/// the barrier that follows.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool present) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = present ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(global),
               "r"(bytes)
               : "memory");
}

/// Makes a group of the copies since the last one.
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

/// Waits until at most kGroupsLeft groups, the latest ones, are under way.
template <int kGroupsLeft>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kGroupsLeft) : "memory");
}

/// 2^x to about 2 units of the 22nd bit; 0 for -infinity.
__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

/// Both rounded to the nearest bf16, `low` in the lower half.
__device__ __forceinline__ std::uint32_t pack_bf16(float low, float high) {
  std::uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

#endif

/// Where 16-byte chunk `chunk` of a row lies in a tile of kWidth bf16 a row, in elements from the
/// tile's start. Chunks are permuted within a row so that any 8 rows that follow each other have a
/// chunk in 8 different places modulo 128 bytes: neither copies nor ldmatrix meet bank conflicts.
template <int kWidth>
__device__ __forceinline__ int tile_offset(int row, int chunk) {
  static_assert(kWidth % 32 == 0);
  if constexpr (kWidth % 64 == 0) {
    return row * kWidth + ((chunk ^ (row & 7)) << 3);
  } else {  // two rows are a multiple of 128 bytes
    return row * kWidth + ((chunk ^ ((row >> 1) & 3)) << 3);
  }
}

}  // namespace scone::cuda
