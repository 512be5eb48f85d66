#include <algorithm>
#include <cmath>

#include "model/ops/cpu/element.h"
#include "model/ops/cpu/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/ops/cpu/trie_attention.cpp"
#include <hwy/foreach_target.h>

#include "model/ops/cpu/cpu_backend.h"
#include "model/ops/cpu/vector_math.h"

HWY_BEFORE_NAMESPACE();
namespace scone::HWY_NAMESPACE {
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

template <class T>
float dot(const T* a, const T* b, std::int64_t n) {
  float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t e = 0; e < n; ++e) sum += to_float(a[e]) * to_float(b[e]);
  return sum;
}

template <class T>
void add(float factor, const T* from, float* to, std::int64_t n) {
#pragma omp simd
  for (std::int64_t e = 0; e < n; ++e) to[e] += factor * to_float(from[e]);
}

template <class T>
void round_to(const float* from, T* to, std::int64_t n) {
#pragma omp simd
  for (std::int64_t e = 0; e < n; ++e) to[e] = from_float<T>(from[e]);
}

template <class T>
void attend(const TrieShape& shape, const T* qkv, const std::int32_t* parent, T* out,
            float* log_sum_exp) {
  const std::int64_t n = shape.head_width, width = shape.heads * n, stride = 3 * width;
  const float scale = 1.0F / std::sqrt(static_cast<float>(n));
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < shape.nodes; ++i) {
    static thread_local Scratch scratch;
    float* sums = scratch.get<float>(n);
    const Path path(parent, i);
    for (std::int64_t head = 0; head < shape.heads; ++head) {
      const T* q = qkv + i * stride + head * n;
      float weights[kMaxTrieDepth];
      float largest = -INFINITY;
      for (std::int64_t j = 0; j < path.length; ++j) {
        weights[j] = scale * dot(q, qkv + path.node[j] * stride + width + head * n, n);
        largest = std::max(largest, weights[j]);
      }
      float sum = 0.0F;
      for (std::int64_t j = 0; j < path.length; ++j) {
        weights[j] = fast_exp(weights[j] - largest);
        sum += weights[j];
      }
      std::fill(sums, sums + n, 0.0F);
      for (std::int64_t j = 0; j < path.length; ++j)
        add(weights[j] / sum, qkv + path.node[j] * stride + 2 * width + head * n, sums, n);
      round_to(sums, out + i * width + head * n, n);
      log_sum_exp[i * shape.heads + head] = largest + std::log(sum);
    }
  }
}

/// The backward pass of whole root subtrees, from the last node to the first: a node's descendants
/// come before it, and what they add to the gradients of its k and v waits, in fp32, at its depth.
template <class T>
class BackwardPass {
 public:
  BackwardPass(const TrieShape& shape, const T* qkv, const std::int32_t* parent, const T* out,
               const float* log_sum_exp, const T* d_out, T* d_qkv)
      : shape_(shape),
        qkv_(qkv),
        parent_(parent),
        out_(out),
        log_sum_exp_(log_sum_exp),
        d_out_(d_out),
        d_qkv_(d_qkv) {}

  /// Nodes [begin, end): whole root subtrees.
  void run(std::int64_t begin, std::int64_t end) const {
    static thread_local Scratch scratch;
    const std::int64_t width = shape_.heads * shape_.head_width;
    float* waiting = scratch.get<float>((2 * kMaxTrieDepth + 1) * width);
    std::fill_n(waiting, 2 * kMaxTrieDepth * width, 0.0F);
    for (std::int64_t i = end; i-- > begin;) node(i, waiting, waiting + 2 * kMaxTrieDepth * width);
  }

 private:
  void node(std::int64_t i, float* waiting, float* d_q) const {
    const std::int64_t n = shape_.head_width, width = shape_.heads * n, stride = 3 * width;
    const float scale = 1.0F / std::sqrt(static_cast<float>(n));
    const Path path(parent_, i);
    std::fill_n(d_q, width, 0.0F);
    for (std::int64_t head = 0; head < shape_.heads; ++head) {
      const std::int64_t at = head * n;
      const T* q = qkv_ + i * stride + at;
      const T* d_o = d_out_ + i * width + at;
      const float mean = dot(out_ + i * width + at, d_o, n);
      const float log_sum = log_sum_exp_[i * shape_.heads + head];
      for (std::int64_t j = 0; j < path.length; ++j) {
        const T* k = qkv_ + path.node[j] * stride + width + at;
        float* d_k = waiting + (path.length - 1 - j) * 2 * width + at;
        const float weight = fast_exp(scale * dot(q, k, n) - log_sum);
        const float d_score = weight * (dot(d_o, k + width, n) - mean) * scale;
        add(d_score, k, d_q + at, n);
        add(d_score, q, d_k, n);
        add(weight, d_o, d_k + width, n);
      }
    }
    float* own = waiting + (path.length - 1) * 2 * width;
    round_to(d_q, d_qkv_ + i * stride, width);
    round_to(own, d_qkv_ + i * stride + width, 2 * width);
    std::fill_n(own, 2 * width, 0.0F);
  }

  TrieShape shape_;
  const T* qkv_;
  const std::int32_t* parent_;
  const T* out_;
  const float* log_sum_exp_;
  const T* d_out_;
  T* d_qkv_;
};

template <class T>
void attend_backward(const TrieShape& shape, const std::int32_t* parent,
                     const BackwardPass<T>& pass) {
  const std::int64_t blocks = (shape.nodes + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t block = 0; block < blocks; ++block) {
    std::int64_t first = block * kBlock;
    const std::int64_t block_end = std::min(shape.nodes, first + kBlock);
    while (first < block_end && parent[first] >= 0) ++first;
    if (first == block_end) continue;  // no subtree starts here
    std::int64_t end = block_end;
    while (end < shape.nodes && parent[end] >= 0) ++end;
    pass.run(first, end);
  }
}

}  // namespace

void CpuBackend::trie_attention(const TrieShape& shape, const Tensor& qkv, const Tensor& parent,
                                const Tensor& out, const Tensor& log_sum_exp) {
  const std::int32_t* parents = parent.data<std::int32_t>();
  if (is_bf16(qkv))
    attend(shape, qkv.data<Bf16>(), parents, out.data<Bf16>(), log_sum_exp.data<float>());
  else
    attend(shape, qkv.data<float>(), parents, out.data<float>(), log_sum_exp.data<float>());
}

void CpuBackend::trie_attention_backward(const TrieShape& shape, const Tensor& qkv,
                                         const Tensor& parent, const Tensor& out,
                                         const Tensor& log_sum_exp, const Tensor& d_out,
                                         const Tensor& d_qkv) {
  const std::int32_t* parents = parent.data<std::int32_t>();
  const float* saved = log_sum_exp.data<float>();
  if (is_bf16(qkv))
    attend_backward(shape, parents,
                    BackwardPass<Bf16>(shape, qkv.data<Bf16>(), parents, out.data<Bf16>(), saved,
                                       d_out.data<Bf16>(), d_qkv.data<Bf16>()));
  else
    attend_backward(shape, parents,
                    BackwardPass<float>(shape, qkv.data<float>(), parents, out.data<float>(), saved,
                                        d_out.data<float>(), d_qkv.data<float>()));
}

}  // namespace scone::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
