#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <stdexcept>
#include <string>

#include "model/ops/cuda/head_elements.h"
#include "model/ops/cuda/kernel_tools.h"
#include "model/ops/cuda/trie_attention.h"
#include "parallel/cuda/launch.h"

namespace scone::cuda {
namespace {

// The gradients of a node's key and value come from all its descendants, which follow it in
// preorder: up to all nodes for a root that many n-grams share. So nodes are cut into tiles of
// kTile, and sums over descendants end with a tile. Of a later tile's nodes only ancestors of its
// first node can lie before it, at most one of each depth: its spine. Sums over a tile of a spine
// node are kept in fp32 by (tile, depth) and added in the order of tiles at last, whole runs of
// kRun tiles at once. Spines are followed to kSplitDepths; nodes deeper than that sum over all
// their descendants at once.
constexpr int kThreads = 256, kTile = 128, kSplitDepths = 8, kRun = 64;
constexpr std::int64_t kMostItems = std::int64_t{1} << 31;

/// The backward pass's workspace.
struct Workspace {
  unsigned tiles = 0, runs = 0;
  float* sums = nullptr;          // [tiles, kSplitDepths, 2 width], of the tile's spine
  float* own_sums = nullptr;      // the same of the tile's nodes that go on after it
  float* run_sums = nullptr;      // [runs, kSplitDepths, 2 width], of spine nodes of all its tiles
  float* delta = nullptr;         // [nodes, heads], sum(out * d_out)
  std::int32_t* spine = nullptr;  // [tiles, kSplitDepths], node or -1
  std::uint8_t* depth = nullptr;  // [nodes], 0 at roots
};

std::int64_t place_workspace(const TrieShape& shape, void* memory, Workspace& workspace) {
  const std::int64_t tiles = (shape.nodes + kTile - 1) / kTile, runs = tiles / kRun;
  const std::int64_t row = 2 * shape.heads * shape.head_width * kSplitDepths;
  workspace.tiles = static_cast<unsigned>(tiles);
  workspace.runs = static_cast<unsigned>(runs);
  std::int64_t bytes = 0;
  const auto place = [&](auto*& pointer, std::int64_t count) {
    using Element = std::remove_reference_t<decltype(*pointer)>;
    if (memory != nullptr) {
      pointer = reinterpret_cast<Element*>(static_cast<char*>(memory) + bytes);
    }
    bytes += (count * static_cast<std::int64_t>(sizeof(Element)) + 15) / 16 * 16;
  };
  place(workspace.sums, tiles * row);
  place(workspace.own_sums, tiles * row);
  place(workspace.run_sums, runs * row);
  place(workspace.delta, shape.nodes * shape.heads);
  place(workspace.spine, tiles * kSplitDepths);
  place(workspace.depth, shape.nodes);
  return bytes;
}

template <class T>
struct TrieTensors {
  const T* qkv = nullptr;
  const std::int32_t* parent = nullptr;
  T* out = nullptr;              // written forward, read backward
  float* log_sum_exp = nullptr;  // the same
  const T* d_out = nullptr;
  T* d_qkv = nullptr;
  Workspace workspace;
};

struct TrieSizes {
  unsigned nodes = 0, heads = 0;
  std::int64_t width = 0;  // heads * head_width
  int head_width = 0, lanes = 0;
  float scale = 0;
};

/// What a group of lanes works on: `row` counts nodes, or places in tiles; no more groups than
/// `rows` times heads are present.
struct Item {
  unsigned row = 0, head = 0;
  int lane = 0;
  bool present = false;
};

__device__ __forceinline__ Item item_of_group(const TrieSizes& sizes, unsigned rows) {
  const unsigned lanes = static_cast<unsigned>(sizes.lanes);
  const unsigned item = blockIdx.x * (kThreads / lanes) + threadIdx.x / lanes;
  Item result;
  result.lane = static_cast<int>(threadIdx.x % lanes);
  result.row = item / sizes.heads;
  result.head = item % sizes.heads;
  result.present = result.row < rows;
  return result;
}

template <class T, int kPack, int kPacks>
__global__ void __launch_bounds__(kThreads)
    trie_attention_forward(TrieTensors<T> tensors, TrieSizes sizes) {
  using Part = RowPart<T, kPack, kPacks>;
  const Item item = item_of_group(sizes, sizes.nodes);
  const int width = sizes.head_width, lanes = sizes.lanes;
  const std::int64_t node = item.row, column = std::int64_t{item.head} * width;
  const T* const all = tensors.qkv + column;
  Part q, k, v, o;
  q.load(all + node * 3 * sizes.width, width, item.lane, lanes, item.present);
  o.clear();
  float largest = -INFINITY, sum = 0.0F;
  std::int64_t at = item.present ? node : -1;
  while (__any_sync(0xFFFFFFFFU, at >= 0)) {  // together, for the shuffles
    const bool here = at >= 0;
    const T* const row = all + (here ? at * 3 * sizes.width : 0) + sizes.width;
    k.load(row, width, item.lane, lanes, here);
    v.load(row + sizes.width, width, item.lane, lanes, here);
    const float score = sizes.scale * group_sum(q.partial_dot(k), lanes);
    if (here) {
      at = tensors.parent[at];
      const float high = fmaxf(largest, score);
      const float factor = expf(largest - high), weight = expf(score - high);
      largest = high;
      sum = sum * factor + weight;
      o.scale(factor);
      o.add(weight, v);
    }
  }
  if (!item.present) return;
  o.scale(1.0F / sum);
  o.store(tensors.out + node * sizes.width + column, width, item.lane, lanes);
  if (item.lane == 0) tensors.log_sum_exp[node * sizes.heads + item.head] = largest + logf(sum);
}

/// Gradients of queries, and workspace.delta.
template <class T, int kPack, int kPacks>
__global__ void __launch_bounds__(kThreads)
    trie_attention_backward_queries(TrieTensors<T> tensors, TrieSizes sizes) {
  using Part = RowPart<T, kPack, kPacks>;
  const Item item = item_of_group(sizes, sizes.nodes);
  const int width = sizes.head_width, lanes = sizes.lanes;
  const std::int64_t node = item.row, column = std::int64_t{item.head} * width;
  const std::int64_t pair = node * sizes.heads + item.head;
  const T* const all = tensors.qkv + column;
  Part q, d_out, k, v, d_q;
  q.load(all + node * 3 * sizes.width, width, item.lane, lanes, item.present);
  d_out.load(tensors.d_out + node * sizes.width + column, width, item.lane, lanes, item.present);
  d_q.load(tensors.out + node * sizes.width + column, width, item.lane, lanes, item.present);
  const float delta = group_sum(d_out.partial_dot(d_q), lanes);
  const float log_sum_exp = item.present ? tensors.log_sum_exp[pair] : 0.0F;
  d_q.clear();
  std::int64_t at = item.present ? node : -1;
  while (__any_sync(0xFFFFFFFFU, at >= 0)) {  // together, for the shuffles
    const bool here = at >= 0;
    const T* const row = all + (here ? at * 3 * sizes.width : 0) + sizes.width;
    k.load(row, width, item.lane, lanes, here);
    v.load(row + sizes.width, width, item.lane, lanes, here);
    const float score = sizes.scale * group_sum(q.partial_dot(k), lanes);
    const float d_weight = group_sum(d_out.partial_dot(v), lanes);
    if (here) {
      at = tensors.parent[at];
      d_q.add(expf(score - log_sum_exp) * (d_weight - delta) * sizes.scale, k);
    }
  }
  if (!item.present) return;
  d_q.store(tensors.d_qkv + node * 3 * sizes.width + column, width, item.lane, lanes);
  if (item.lane == 0) tensors.workspace.delta[pair] = delta;
}

/// Fills workspace.depth and .spine.
__global__ void __launch_bounds__(kThreads)
    trie_attention_paths(const std::int32_t* parent, Workspace workspace, unsigned nodes) {
  const unsigned node = blockIdx.x * kThreads + threadIdx.x;
  if (node >= nodes) return;
  int depth = 0;
  for (std::int32_t at = parent[node]; at >= 0; at = parent[at]) ++depth;
  workspace.depth[node] = static_cast<std::uint8_t>(depth);
  if (node % kTile != 0) return;
  std::int32_t* const spine = workspace.spine + std::int64_t{node / kTile} * kSplitDepths;
  for (int i = depth; i < kSplitDepths; ++i) spine[i] = -1;
  for (std::int32_t at = parent[node]; at >= 0; at = parent[at]) {
    --depth;
    if (depth < kSplitDepths) spine[depth] = at;
  }
}

/// Gradients of a node's key and value from its descendants in a tile, itself among them. A tile
/// has kSplitDepths places for its spine, then one for each of its nodes.
template <class T, int kPack, int kPacks>
__global__ void __launch_bounds__(kThreads)
    trie_attention_backward_keys(TrieTensors<T> tensors, TrieSizes sizes) {
  using Part = RowPart<T, kPack, kPacks>;
  constexpr unsigned kPlaces = kTile + kSplitDepths;
  const Workspace& workspace = tensors.workspace;
  const Item item = item_of_group(sizes, workspace.tiles * kPlaces);
  const unsigned tile = item.row / kPlaces, place = item.row % kPlaces;
  const std::int64_t begin = std::int64_t{tile} * kTile;
  const std::int64_t tile_end = min(begin + kTile, std::int64_t{sizes.nodes});
  const bool of_spine = place < kSplitDepths;
  std::int64_t node = -1;
  if (item.present) {
    node = of_spine ? workspace.spine[std::int64_t{tile} * kSplitDepths + place]
                    : begin + place - kSplitDepths;
    if (node >= sizes.nodes) node = -1;
  }
  const bool present = node >= 0;
  const int width = sizes.head_width, lanes = sizes.lanes;
  const std::int64_t column = std::int64_t{item.head} * width;
  const T* const all = tensors.qkv + column;
  const int depth = present ? workspace.depth[node] : 0;
  const std::int64_t end = depth < kSplitDepths ? tile_end : std::int64_t{sizes.nodes};
  Part q, d_out, k, v, d_k, d_v;
  const T* const own = all + (present ? node * 3 * sizes.width : 0) + sizes.width;
  k.load(own, width, item.lane, lanes, present);
  v.load(own + sizes.width, width, item.lane, lanes, present);
  d_k.clear();
  d_v.clear();
  std::int64_t at = of_spine ? begin : node;
  bool here = present;
  while (__any_sync(0xFFFFFFFFU, here)) {  // together, for the shuffles
    q.load(all + (here ? at * 3 * sizes.width : 0), width, item.lane, lanes, here);
    d_out.load(tensors.d_out + (here ? at * sizes.width : 0) + column, width, item.lane, lanes,
               here);
    const std::int64_t pair = here ? at * sizes.heads + item.head : 0;
    const float score = sizes.scale * group_sum(q.partial_dot(k), lanes);
    const float d_weight = group_sum(d_out.partial_dot(v), lanes);
    if (here) {
      const float weight = expf(score - tensors.log_sum_exp[pair]);
      d_k.add(weight * (d_weight - workspace.delta[pair]) * sizes.scale, q);
      d_v.add(weight, d_out);
      ++at;
      here = at < end && workspace.depth[at] > depth;
    }
  }
  if (!present) return;
  const bool goes_on =
      depth < kSplitDepths && at == end && end < sizes.nodes && workspace.depth[end] > depth;
  if (of_spine || goes_on) {
    float* const sums = (of_spine ? workspace.sums : workspace.own_sums) +
                        (std::int64_t{tile} * kSplitDepths + depth) * 2 * sizes.width + column;
    d_k.store_sums(sums, width, item.lane, lanes);
    d_v.store_sums(sums + sizes.width, width, item.lane, lanes);
  } else {
    T* const target = tensors.d_qkv + node * 3 * sizes.width + sizes.width + column;
    d_k.store(target, width, item.lane, lanes);
    d_v.store(target + sizes.width, width, item.lane, lanes);
  }
}

/// run_sums of runs of tiles that share a spine node.
__global__ void __launch_bounds__(kThreads)
    trie_attention_sum_runs(Workspace workspace, std::int64_t elements) {
  const std::int64_t columns = (elements + kThreads - 1) / kThreads;
  const std::int64_t row = blockIdx.x / columns;  // run, depth
  const std::int64_t column = blockIdx.x % columns * kThreads + threadIdx.x;
  const std::int64_t first = row / kSplitDepths * kRun, depth = row % kSplitDepths;
  const std::int32_t node = workspace.spine[first * kSplitDepths + depth];
  if (column >= elements || node < 0 ||
      workspace.spine[(first + kRun - 1) * kSplitDepths + depth] != node) {
    return;
  }
  float sum = 0.0F;
#pragma unroll 8
  for (int i = 0; i < kRun; ++i) {
    sum += workspace.sums[((first + i) * kSplitDepths + depth) * elements + column];
  }
  workspace.run_sums[row * elements + column] = sum;
}

/// Gradients of nodes whose descendants go on after their tile. A block is of the tile that follows
/// the node's own, and of a depth.
template <class T>
__global__ void __launch_bounds__(kThreads)
    trie_attention_add_tiles(TrieTensors<T> tensors, TrieSizes sizes) {
  const Workspace& workspace = tensors.workspace;
  const std::int64_t elements = 2 * sizes.width;
  const std::int64_t columns = (elements + kThreads - 1) / kThreads;
  const std::int64_t row = blockIdx.x / columns + kSplitDepths;  // tile, depth; not of tile 0
  const std::int64_t column = blockIdx.x % columns * kThreads + threadIdx.x;
  const std::int64_t depth = row % kSplitDepths, tiles = workspace.tiles;
  std::int64_t tile = row / kSplitDepths;
  const std::int32_t node = workspace.spine[row];
  if (column >= elements || node < (tile - 1) * kTile) return;
  float sum = workspace.own_sums[((tile - 1) * kSplitDepths + depth) * elements + column];
  while (tile < tiles && workspace.spine[tile * kSplitDepths + depth] == node) {
    const std::int64_t last = tile + kRun - 1;
    if (tile % kRun == 0 && last < tiles && workspace.spine[last * kSplitDepths + depth] == node) {
      sum += workspace.run_sums[(tile / kRun * kSplitDepths + depth) * elements + column];
      tile += kRun;
    } else {
      sum += workspace.sums[(tile * kSplitDepths + depth) * elements + column];
      ++tile;
    }
  }
  tensors.d_qkv[node * 3 * sizes.width + sizes.width + column] = from_float<T>(sum);
}

TrieSizes trie_sizes(const TrieShape& shape, const RowSplit& split) {
  if (shape.nodes >= kMostItems / 2 || shape.heads >= kMostItems / 2 / shape.nodes) {
    throw std::invalid_argument("trie attention on CUDA: " + std::to_string(shape.nodes) +
                                " nodes of " + std::to_string(shape.heads) +
                                " heads are more than its kernels count; use smaller chunks");
  }
  TrieSizes sizes;
  sizes.nodes = static_cast<unsigned>(shape.nodes);
  sizes.heads = static_cast<unsigned>(shape.heads);
  sizes.width = shape.heads * shape.head_width;
  sizes.head_width = static_cast<int>(shape.head_width);
  sizes.lanes = split.lanes;
  sizes.scale = 1.0F / std::sqrt(static_cast<float>(shape.head_width));
  return sizes;
}

/// A group of lanes for each head of `rows`.
LaunchShape groups_of(std::int64_t rows, const TrieSizes& sizes) {
  const std::int64_t groups = kThreads / sizes.lanes;
  return {(rows * sizes.heads + groups - 1) / groups, kThreads};
}

bool is_empty(const TrieShape& shape) {
  return shape.nodes == 0 || shape.heads == 0 || shape.head_width == 0;
}

}  // namespace

std::int64_t trie_attention_backward_workspace_bytes(const TrieShape& shape) {
  Workspace unused;
  return place_workspace(shape, nullptr, unused);
}

template <class T>
void trie_attention(const TrieShape& shape, const T* qkv, const std::int32_t* parent, T* out,
                    float* log_sum_exp, cudaStream_t stream) {
  if (is_empty(shape)) return;
  const RowSplit split = split_row<T>(shape.head_width, "trie attention");
  const TrieSizes sizes = trie_sizes(shape, split);
  TrieTensors<T> tensors;
  tensors.qkv = qkv;
  tensors.parent = parent;
  tensors.out = out;
  tensors.log_sum_exp = log_sum_exp;
  with_split<T>(split, [&]<int kPack, int kPacks>() {
    SCONE_LAUNCH((trie_attention_forward<T, kPack, kPacks>), groups_of(shape.nodes, sizes), stream,
                 tensors, sizes);
  });
}

template <class T>
void trie_attention_backward(const TrieShape& shape, const T* qkv, const std::int32_t* parent,
                             const T* out, const float* log_sum_exp, const T* d_out, T* d_qkv,
                             void* workspace, cudaStream_t stream) {
  if (is_empty(shape)) return;
  const RowSplit split = split_row<T>(shape.head_width, "trie attention");
  const TrieSizes sizes = trie_sizes(shape, split);
  TrieTensors<T> tensors;
  tensors.qkv = qkv;
  tensors.parent = parent;
  tensors.out = const_cast<T*>(out);                      // only read
  tensors.log_sum_exp = const_cast<float*>(log_sum_exp);  // only read
  tensors.d_out = d_out;
  tensors.d_qkv = d_qkv;
  place_workspace(shape, workspace, tensors.workspace);
  const std::int64_t tiles = tensors.workspace.tiles, runs = tensors.workspace.runs;
  SCONE_LAUNCH(trie_attention_paths,
               (LaunchShape{(shape.nodes + kThreads - 1) / kThreads, kThreads}), stream, parent,
               tensors.workspace, sizes.nodes);
  with_split<T>(split, [&]<int kPack, int kPacks>() {
    SCONE_LAUNCH((trie_attention_backward_queries<T, kPack, kPacks>), groups_of(shape.nodes, sizes),
                 stream, tensors, sizes);
    SCONE_LAUNCH((trie_attention_backward_keys<T, kPack, kPacks>),
                 groups_of(tiles * (kTile + kSplitDepths), sizes), stream, tensors, sizes);
  });
  const std::int64_t elements = 2 * sizes.width, columns = (elements + kThreads - 1) / kThreads;
  if (runs > 0) {
    SCONE_LAUNCH(trie_attention_sum_runs, (LaunchShape{runs * kSplitDepths * columns, kThreads}),
                 stream, tensors.workspace, elements);
  }
  if (tiles > 1) {
    SCONE_LAUNCH(trie_attention_add_tiles<T>,
                 (LaunchShape{(tiles - 1) * kSplitDepths * columns, kThreads}), stream, tensors,
                 sizes);
  }
}

template void trie_attention(const TrieShape&, const float*, const std::int32_t*, float*, float*,
                             cudaStream_t);
template void trie_attention(const TrieShape&, const __nv_bfloat16*, const std::int32_t*,
                             __nv_bfloat16*, float*, cudaStream_t);
template void trie_attention_backward(const TrieShape&, const float*, const std::int32_t*,
                                      const float*, const float*, const float*, float*, void*,
                                      cudaStream_t);
template void trie_attention_backward(const TrieShape&, const __nv_bfloat16*, const std::int32_t*,
                                      const __nv_bfloat16*, const float*, const __nv_bfloat16*,
                                      __nv_bfloat16*, void*, cudaStream_t);

}  // namespace scone::cuda
