#include <cuda_bf16.h>

#include <algorithm>
#include <bit>
#include <cub/cub.cuh>

#include "model/ops/cuda/embedding.h"
#include "model/ops/cuda/kernel_tools.h"
#include "parallel/cuda/launch.h"

namespace scone::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

/// Whether position i takes the embedding of its token, and its row or -1.
struct Choice {
  std::int64_t row;
  bool takes_token;
};
__device__ __forceinline__ Choice choice_of(const EmbeddingIndices& indices, std::int64_t i) {
  const std::int64_t row = indices.row_of_position == nullptr ? -1 : indices.row_of_position[i];
  return {row, indices.tokens[i] >= 0 && (row == -1 || indices.combine == CombineKind::add)};
}

/// A warp a position.
template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    embed_positions(EmbeddingIndices indices, const T* token_embedding, const T* position_embedding,
                    const float* rows, T* out, std::int64_t count, std::int64_t width) {
  const std::int64_t first = block_index() * kWarps + warp_index();
  for (std::int64_t i = first; i < count; i += std::int64_t{gridDim.x} * kWarps) {
    const Choice choice = choice_of(indices, i);
    const T* const token =
        choice.takes_token ? token_embedding + indices.tokens[i] * width : nullptr;
    const float* const row = choice.row >= 0 ? rows + choice.row * width : nullptr;
    const T* const position =
        position_embedding == nullptr ? nullptr : position_embedding + indices.positions[i] * width;
    for (std::int64_t column = lane_index() * kPack; column < width; column += kWarp * kPack) {
      float sums[kPack] = {};
      const auto add = [&](const auto* from) {
        if (from == nullptr) return;
        float values[kPack];
        load_floats(from + column, values);
#pragma unroll
        for (int k = 0; k < kPack; ++k) sums[k] += values[k];
      };
      add(row);
      add(token);
      add(position);
      store_floats(out + i * width + column, sums);
    }
  }
}

// Backward: each position's gradient goes to up to three places, numbered over the three tables
// together: positions, then rows, then tokens, last since a tensor-parallel rank has those of its
// part of the vocabulary alone, and so as not to move the tiles of the others. The (place,
// position) pairs are sorted by place, cut into tiles of as many, and each tile adds up its runs of
// one place. A run that lies within a tile is added to its place at once; a piece of one that
// reaches beyond is kept, and the pieces of a run are joined by the block of the tile where it
// begins.

constexpr int kTile = 64;  // pairs

struct Places {
  float *tokens, *positions, *rows;
  std::int64_t first_row, first_token, none;  // none: no place at all, sorted last
  __device__ __forceinline__ float* at(std::int64_t place, std::int64_t width) const {
    if (place < first_row) return positions + place * width;
    if (place < first_token) return rows + (place - first_row) * width;
    return tokens + (place - first_token) * width;
  }
};

__global__ void __launch_bounds__(kThreads)
    list_places(EmbeddingIndices indices, Places places, std::int32_t* keys, std::int32_t* values,
                std::int64_t count) {
  for (std::int64_t i = grid_thread(); i < count; i += grid_threads()) {
    const Choice choice = choice_of(indices, i);
    std::int64_t at = i;
    const auto put = [&](std::int64_t place) {
      keys[at] = static_cast<std::int32_t>(place);
      values[at] = static_cast<std::int32_t>(i);
      at += count;
    };
    if (places.positions != nullptr) put(indices.positions[i]);
    if (places.rows != nullptr) {
      put(choice.row >= 0 ? places.first_row + choice.row : places.none);
    }
    put(choice.takes_token ? places.first_token + indices.tokens[i] : places.none);
  }
}

template <int kPack>
__device__ __forceinline__ void add_to(float* target, const float (&values)[kPack]) {
  float sums[kPack];
  load_floats(target, sums);
#pragma unroll
  for (int k = 0; k < kPack; ++k) sums[k] += values[k];
  store_floats(target, sums);
}

/// pieces: [tiles, 2, width]: of the run that comes from the tile before, and of the one that
/// begins here and goes on.
template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    add_tiles(const T* d_out, const std::int32_t* keys, const std::int32_t* values, Places places,
              float* pieces, std::int64_t pairs, std::int64_t width) {
  SCONE_SHARED(std::int32_t, own_keys, [kTile + 1]);
  SCONE_SHARED(std::int32_t, own_values, [kTile]);
  const std::int64_t begin = block_index() * kTile;
  const int count = static_cast<int>(min(std::int64_t{kTile}, pairs - begin));
  for (int i = thread_index(); i <= count; i += thread_count()) {
    // Behind the last pair stands a key of none.
    own_keys[i] = begin + i < pairs ? keys[begin + i] : -1;
    if (i < count) own_values[i] = values[begin + i];
  }
  __syncthreads();
  const std::int64_t column = (std::int64_t{blockIdx.y} * thread_count() + thread_index()) * kPack;
  if (column >= width) return;
  bool from_before = begin > 0 && keys[begin - 1] == own_keys[0];
  float* const own_pieces = pieces + block_index() * 2 * width + column;
  float sums[kPack] = {};
#pragma unroll 4
  for (int i = 0; i < count; ++i) {
    const std::int32_t key = own_keys[i];
    if (key == places.none) return;  // and so are all after it
    float gradient[kPack];
    load_floats(d_out + std::int64_t{own_values[i]} * width + column, gradient);
#pragma unroll
    for (int k = 0; k < kPack; ++k) sums[k] += gradient[k];
    const bool goes_on = own_keys[i + 1] == key;
    if (goes_on && i + 1 < count) continue;
    if (from_before) {
      store_floats(own_pieces, sums);
    } else if (goes_on) {
      store_floats(own_pieces + width, sums);
    } else {
      add_to(places.at(key, width) + column, sums);
    }
    from_before = false;
#pragma unroll
    for (int k = 0; k < kPack; ++k) sums[k] = 0.0F;
  }
}

template <int kPack>
__global__ void __launch_bounds__(kThreads)
    join_pieces(const std::int32_t* keys, Places places, const float* pieces, std::int64_t pairs,
                std::int64_t width) {
  const std::int64_t end = (block_index() + 1) * kTile;
  if (end >= pairs) return;
  const std::int32_t key = keys[end];
  // A run begins in this tile and goes on in the next.
  if (key == places.none || keys[end - 1] != key) return;
  const std::int64_t begin = end - kTile;
  if (begin > 0 && keys[begin] == key && keys[begin - 1] == key) return;
  const std::int64_t column = (std::int64_t{blockIdx.y} * thread_count() + thread_index()) * kPack;
  if (column >= width) return;
  float sums[kPack];
  load_floats(pieces + (block_index() * 2 + 1) * width + column, sums);
#pragma unroll 4
  for (std::int64_t tile = block_index() + 1; tile * kTile < pairs && keys[tile * kTile] == key;
       ++tile) {
    float piece[kPack];
    load_floats(pieces + tile * 2 * width + column, piece);
#pragma unroll
    for (int k = 0; k < kPack; ++k) sums[k] += piece[k];
  }
  add_to(places.at(key, width) + column, sums);
}

std::int64_t padded(std::int64_t bytes) { return divide_up(bytes, 256) * 256; }

Places places_of(const EmbeddingIndices& indices, const EmbeddingGradients& gradients) {
  Places places{gradients.tokens,
                gradients.positions,
                indices.row_of_position == nullptr ? nullptr : gradients.rows,
                0,
                0,
                0};
  places.first_row = places.positions == nullptr ? 0 : gradients.context;
  places.first_token = places.first_row + (places.rows == nullptr ? 0 : gradients.row_count);
  places.none = places.first_token + gradients.vocabulary;
  return places;
}

/// Where the parts of the workspace begin.
struct Workspace {
  Workspace(const Places& places, std::int64_t count, std::int64_t width)
      : pairs(count * (1 + (places.positions != nullptr) + (places.rows != nullptr))),
        tiles(divide_up(pairs, kTile)),
        bits(static_cast<int>(std::bit_width(static_cast<std::uint64_t>(places.none)))),
        integers(padded(pairs * static_cast<std::int64_t>(sizeof(std::int32_t)))),
        pieces(4 * integers),
        sort(pieces + padded(tiles * 2 * width * static_cast<std::int64_t>(sizeof(float)))) {
    check(cub::DeviceRadixSort::SortPairs(
              nullptr, sort_bytes, static_cast<const std::int32_t*>(nullptr),
              static_cast<std::int32_t*>(nullptr), static_cast<const std::int32_t*>(nullptr),
              static_cast<std::int32_t*>(nullptr), pairs, 0, bits),
          "cub::DeviceRadixSort::SortPairs");
    end = sort + padded(static_cast<std::int64_t>(sort_bytes));
  }
  std::int64_t pairs, tiles;
  int bits;
  std::int64_t integers, pieces, sort, end = 0;
  std::size_t sort_bytes = 0;
};

template <class T, int kPack>
void add_sorted(const T* d_out, const std::int32_t* keys, const std::int32_t* values,
                const Places& places, float* pieces, const Workspace& layout, std::int64_t width,
                cudaStream_t stream) {
  const std::int64_t packs = divide_up(width, kPack);
  const int threads =
      static_cast<int>(std::min<std::int64_t>(kThreads, divide_up(packs, kWarp) * kWarp));
  const LaunchShape shape(layout.tiles, divide_up(packs, threads), 1,
                          dim3(static_cast<unsigned>(threads)));
  SCONE_LAUNCH((add_tiles<T, kPack>), shape, stream, d_out, keys, values, places, pieces,
               layout.pairs, width);
  SCONE_LAUNCH(join_pieces<kPack>, shape, stream, keys, places, pieces, layout.pairs, width);
}

}  // namespace

template <class T>
void embed(const EmbeddingIndices& indices, const T* token_embedding, const T* position_embedding,
           const float* rows, T* out, std::int64_t count, std::int64_t width, cudaStream_t stream) {
  const LaunchShape shape(std::min(divide_up(count, kWarps), kMostBlocks), kThreads);
  if (fits_packs(width, token_embedding, position_embedding, rows, out)) {
    SCONE_LAUNCH((embed_positions<T, Pack<T>::kSize>), shape, stream, indices, token_embedding,
                 position_embedding, rows, out, count, width);
  } else {
    SCONE_LAUNCH((embed_positions<T, 1>), shape, stream, indices, token_embedding,
                 position_embedding, rows, out, count, width);
  }
}

std::int64_t embed_backward_workspace_bytes(const EmbeddingIndices& indices,
                                            const EmbeddingGradients& gradients, std::int64_t count,
                                            std::int64_t width) {
  return count == 0 ? 0 : Workspace(places_of(indices, gradients), count, width).end;
}

template <class T>
void embed_backward(const EmbeddingIndices& indices, const T* d_out,
                    const EmbeddingGradients& gradients, std::int64_t count, std::int64_t width,
                    void* workspace, cudaStream_t stream) {
  if (count == 0) return;
  const Places places = places_of(indices, gradients);
  Workspace layout(places, count, width);
  auto* const memory = static_cast<std::byte*>(workspace);
  const auto integers = [&](int i) {
    return reinterpret_cast<std::int32_t*>(memory + i * layout.integers);
  };
  std::int32_t *const keys = integers(0), *const values = integers(1),
                      *const sorted_keys = integers(2), *const sorted_values = integers(3);
  auto* const pieces = reinterpret_cast<float*>(memory + layout.pieces);
  SCONE_LAUNCH(list_places, (LaunchShape{blocks_for_packs(count, 1, kThreads), kThreads}), stream,
               indices, places, keys, values, count);
  check(cub::DeviceRadixSort::SortPairs(memory + layout.sort, layout.sort_bytes,
                                        static_cast<const std::int32_t*>(keys), sorted_keys,
                                        static_cast<const std::int32_t*>(values), sorted_values,
                                        layout.pairs, 0, layout.bits, stream),
        "cub::DeviceRadixSort::SortPairs");
  if (fits_packs(width, d_out, places.tokens, places.positions, places.rows)) {
    add_sorted<T, Pack<T>::kSize>(d_out, sorted_keys, sorted_values, places, pieces, layout, width,
                                  stream);
  } else {
    add_sorted<T, 1>(d_out, sorted_keys, sorted_values, places, pieces, layout, width, stream);
  }
}

#define SCONE_INSTANTIATE(T)                                                                       \
  template void embed(const EmbeddingIndices&, const T*, const T*, const float*, T*, std::int64_t, \
                      std::int64_t, cudaStream_t);                                                 \
  template void embed_backward(const EmbeddingIndices&, const T*, const EmbeddingGradients&,       \
                               std::int64_t, std::int64_t, void*, cudaStream_t);
SCONE_INSTANTIATE(float)
SCONE_INSTANTIATE(__nv_bfloat16)
#undef SCONE_INSTANTIATE

}  // namespace scone::cuda
