#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "model/ops/cpu/cpu_backend.h"
#include "model/ops/cpu/vector_math.h"

namespace scone {
namespace {

constexpr std::int64_t kBlock = 128;  // a block's work: the root subtrees that start in it

/// Ancestors of a node, the node first.
struct Path {
  std::int64_t length = 0;
  std::int64_t node[kMaxTrieDepth];
  Path(const std::int32_t* parent, std::int64_t from) {
    for (std::int64_t at = from; at >= 0 && length < kMaxTrieDepth; at = parent[at]) {
      node[length++] = at;
    }
  }
};

float dot(const float* a, const float* b, std::int64_t n) {
  float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t e = 0; e < n; ++e) sum += a[e] * b[e];
  return sum;
}

void add(float factor, const float* from, float* to, std::int64_t n) {
#pragma omp simd
  for (std::int64_t e = 0; e < n; ++e) to[e] += factor * from[e];
}

}  // namespace

void CpuBackend::trie_attention(const TrieShape& shape, const Tensor& qkv, const Tensor& parent,
                                const Tensor& out, const Tensor& log_sum_exp) {
  const std::int64_t n = shape.head_width, width = shape.heads * n, stride = 3 * width;
  const float scale = 1.0F / std::sqrt(static_cast<float>(n));
  const float* all = qkv.data<float>();
  const std::int32_t* parents = parent.data<std::int32_t>();
  float* output = out.data<float>();
  float* saved = log_sum_exp.data<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < shape.nodes; ++i) {
    const Path path(parents, i);
    for (std::int64_t head = 0; head < shape.heads; ++head) {
      const float* q = all + i * stride + head * n;
      float weights[kMaxTrieDepth];
      float largest = -INFINITY;
      for (std::int64_t j = 0; j < path.length; ++j) {
        weights[j] = scale * dot(q, all + path.node[j] * stride + width + head * n, n);
        largest = std::max(largest, weights[j]);
      }
      float sum = 0.0F;
      for (std::int64_t j = 0; j < path.length; ++j) {
        weights[j] = fast_exp(weights[j] - largest);
        sum += weights[j];
      }
      float* o = output + i * width + head * n;
      std::fill(o, o + n, 0.0F);
      for (std::int64_t j = 0; j < path.length; ++j) {
        add(weights[j] / sum, all + path.node[j] * stride + 2 * width + head * n, o, n);
      }
      saved[i * shape.heads + head] = largest + std::log(sum);
    }
  }
}

void CpuBackend::trie_attention_backward(const TrieShape& shape, const Tensor& qkv,
                                         const Tensor& parent, const Tensor& out,
                                         const Tensor& log_sum_exp, const Tensor& d_out,
                                         const Tensor& d_qkv) {
  const std::int64_t n = shape.head_width, width = shape.heads * n, stride = 3 * width;
  const float scale = 1.0F / std::sqrt(static_cast<float>(n));
  const float* all = qkv.data<float>();
  const std::int32_t* parents = parent.data<std::int32_t>();
  const float* output = out.data<float>();
  const float* saved = log_sum_exp.data<float>();
  const float* d_output = d_out.data<float>();
  float* d_all = d_qkv.data<float>();
  const auto backward_node = [&](std::int64_t i) {
    const Path path(parents, i);
    float* d_own = d_all + i * stride;
    // Descendants come later in preorder, so nothing has been added to this node yet.
    std::fill(d_own, d_own + stride, 0.0F);
    for (std::int64_t head = 0; head < shape.heads; ++head) {
      const std::int64_t at = head * n;
      const float* q = all + i * stride + at;
      const float* d_o = d_output + i * width + at;
      const float mean = dot(output + i * width + at, d_o, n);
      const float log_sum = saved[i * shape.heads + head];
      for (std::int64_t j = 0; j < path.length; ++j) {
        const float* k = all + path.node[j] * stride + width + at;
        float* d_k = d_all + path.node[j] * stride + width + at;
        const float weight = fast_exp(scale * dot(q, k, n) - log_sum);
        const float d_score = weight * (dot(d_o, k + width, n) - mean) * scale;
        add(d_score, k, d_own + at, n);
        add(d_score, q, d_k, n);
        add(weight, d_o, d_k + width, n);
      }
    }
  };
  // Whole root subtrees, which are contiguous, so that a node's gradients are added by one thread
  // in order.
  const std::int64_t blocks = (shape.nodes + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t block = 0; block < blocks; ++block) {
    std::int64_t i = block * kBlock;
    const std::int64_t end = std::min(shape.nodes, i + kBlock);
    while (i < end && parents[i] >= 0) ++i;
    if (i == end) continue;  // no subtree starts here
    for (; i < shape.nodes && (i < end || parents[i] >= 0); ++i) backward_node(i);
  }
}

}  // namespace scone
