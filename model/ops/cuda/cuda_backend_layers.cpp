// Attention, rows, embeddings and the loss.

#include <cuda_bf16.h>

#include "model/ops/cuda/arguments.h"
#include "model/ops/cuda/cached_attention.h"
#include "model/ops/cuda/causal_attention.h"
#include "model/ops/cuda/cross_entropy.h"
#include "model/ops/cuda/cuda_backend.h"
#include "model/ops/cuda/embedding.h"
#include "model/ops/cuda/rope.h"
#include "model/ops/cuda/rows.h"
#include "model/ops/cuda/trie_attention.h"

namespace scone {

using cuda::Arguments;

namespace {
constexpr std::uintptr_t kAlignment = 16;  // of what attention reads and writes
}

void CudaBackend::rope(const Tensor& qkv, const Tensor& positions, std::int64_t heads,
                       std::int64_t head_width, bool inverse, std::int64_t rows) {
  const Arguments a("rope");
  a.with_type_of(qkv, "qkv", [&]<class T>(T) {
    cuda::rope<T>(a.get<T>(qkv, "qkv", rows * 3 * heads * head_width),
                  a.get<std::int32_t>(positions, "positions", rows), heads, head_width, inverse,
                  rows, stream());
  });
}

void CudaBackend::causal_attention(const CausalShape& shape, const Tensor& qkv,
                                   const Tensor& attention_start, const Tensor& out,
                                   const Tensor& log_sum_exp) {
  const Arguments a("causal_attention");
  const std::int64_t rows = shape.sequences * shape.length, width = shape.heads * shape.head_width;
  for (const auto& [tensor, name] : {std::pair(&qkv, "qkv"), std::pair(&out, "out")}) {
    a.aligned(*tensor, name, kAlignment);
  }
  a.with_type_of(qkv, "qkv", [&]<class T>(T) {
    cuda::causal_attention<T>(shape, a.get<T>(qkv, "qkv", rows * 3 * width),
                              a.get<std::int32_t>(attention_start, "attention_start", rows),
                              a.get<T>(out, "out", rows * width),
                              a.get<float>(log_sum_exp, "log_sum_exp", rows * shape.heads),
                              stream());
  });
}

void CudaBackend::causal_attention_backward(const CausalShape& shape, const Tensor& qkv,
                                            const Tensor& attention_start, const Tensor& out,
                                            const Tensor& log_sum_exp, const Tensor& d_out,
                                            const Tensor& d_qkv) {
  const Arguments a("causal_attention_backward");
  const std::int64_t rows = shape.sequences * shape.length, width = shape.heads * shape.head_width;
  for (const auto& [tensor, name] : {std::pair(&qkv, "qkv"), std::pair(&out, "out"),
                                     std::pair(&d_out, "d_out"), std::pair(&d_qkv, "d_qkv")}) {
    a.aligned(*tensor, name, kAlignment);
  }
  const Scratch work = scratch(cuda::causal_attention_backward_workspace_bytes(shape));
  a.with_type_of(qkv, "qkv", [&]<class T>(T) {
    cuda::causal_attention_backward<T>(
        shape, a.get<T>(qkv, "qkv", rows * 3 * width),
        a.get<std::int32_t>(attention_start, "attention_start", rows),
        a.get<T>(out, "out", rows * width),
        a.get<float>(log_sum_exp, "log_sum_exp", rows * shape.heads),
        a.get<T>(d_out, "d_out", rows * width), a.get<T>(d_qkv, "d_qkv", rows * 3 * width),
        work.data, stream());
  });
}

void CudaBackend::trie_attention(const TrieShape& shape, const Tensor& qkv, const Tensor& parent,
                                 const Tensor& out, const Tensor& log_sum_exp) {
  const Arguments a("trie_attention");
  const std::int64_t width = shape.heads * shape.head_width;
  a.with_type_of(qkv, "qkv", [&]<class T>(T) {
    cuda::trie_attention<T>(shape, a.get<T>(qkv, "qkv", shape.nodes * 3 * width),
                            a.get<std::int32_t>(parent, "parent", shape.nodes),
                            a.get<T>(out, "out", shape.nodes * width),
                            a.get<float>(log_sum_exp, "log_sum_exp", shape.nodes * shape.heads),
                            stream());
  });
}

void CudaBackend::trie_attention_backward(const TrieShape& shape, const Tensor& qkv,
                                          const Tensor& parent, const Tensor& out,
                                          const Tensor& log_sum_exp, const Tensor& d_out,
                                          const Tensor& d_qkv) {
  const Arguments a("trie_attention_backward");
  const std::int64_t width = shape.heads * shape.head_width;
  const Scratch work = scratch(cuda::trie_attention_backward_workspace_bytes(shape));
  a.with_type_of(qkv, "qkv", [&]<class T>(T) {
    cuda::trie_attention_backward<T>(
        shape, a.get<T>(qkv, "qkv", shape.nodes * 3 * width),
        a.get<std::int32_t>(parent, "parent", shape.nodes),
        a.get<T>(out, "out", shape.nodes * width),
        a.get<float>(log_sum_exp, "log_sum_exp", shape.nodes * shape.heads),
        a.get<T>(d_out, "d_out", shape.nodes * width),
        a.get<T>(d_qkv, "d_qkv", shape.nodes * 3 * width), work.data, stream());
  });
}

void CudaBackend::cached_attention(const Tensor& qkv, const Tensor& keys_values, std::int64_t past,
                                   std::int64_t heads, std::int64_t head_width, const Tensor& out,
                                   std::int64_t rows) {
  const Arguments a("cached_attention");
  const std::int64_t width = heads * head_width;
  a.with_type_of(qkv, "qkv", [&]<class T>(T) {
    cuda::cached_attention<T>(a.get<T>(qkv, "qkv", rows * 3 * width),
                              a.get<T>(keys_values, "keys_values", (past + rows) * 2 * width), past,
                              heads, head_width, a.get<T>(out, "out", rows * width), rows,
                              stream());
  });
}

void CudaBackend::gather_rows(const Tensor& source, const Tensor& index, const Tensor& target,
                              std::int64_t count) {
  const Arguments a("gather_rows");
  const std::int64_t width = count == 0 ? 0 : source.dim(1);
  cuda::gather_rows(a.get<float>(source, "source", count > 0 ? width : 0),
                    a.get<std::int32_t>(index, "index", count),
                    a.get<float>(target, "target", count * width), count, width, stream());
}

void CudaBackend::scatter_rows(const Tensor& source, const Tensor& index, const Tensor& target,
                               std::int64_t count) {
  const Arguments a("scatter_rows");
  const std::int64_t width = count == 0 ? 0 : source.dim(1);
  cuda::scatter_rows(a.get<float>(source, "source", count * width),
                     a.get<std::int32_t>(index, "index", count),
                     a.get<float>(target, "target", count > 0 ? width : 0), count, width, stream());
}

void CudaBackend::cross_entropy(const Tensor& logits, const Tensor& targets, std::int64_t used,
                                const Tensor& losses, bool with_gradient, float gradient_scale,
                                std::int64_t rows) {
  const Arguments a("cross_entropy");
  const std::int64_t columns = logits.dim(1);
  a.with_type_of(logits, "logits", [&]<class T>(T) {
    cuda::cross_entropy<T>(a.get<T>(logits, "logits", rows * columns),
                           a.get<std::int32_t>(targets, "targets", rows), used,
                           a.get<float>(losses, "losses", rows), with_gradient, gradient_scale,
                           rows, columns, stream());
  });
}

void CudaBackend::cross_entropy_part(const Tensor& logits, const Tensor& targets,
                                     std::int64_t first_class, std::int64_t used,
                                     const Tensor& statistics, std::int64_t rows) {
  const Arguments a("cross_entropy_part");
  const std::int64_t classes = logits.dim(1);
  a.with_type_of(logits, "logits", [&]<class T>(T) {
    cuda::cross_entropy_part<T>(a.get<T>(logits, "logits", rows * classes),
                                a.get<std::int32_t>(targets, "targets", rows), first_class, used,
                                a.get<float>(statistics, "statistics", rows * 3), rows, classes,
                                stream());
  });
}

void CudaBackend::cross_entropy_join(const Tensor& logits, const Tensor& targets,
                                     std::int64_t first_class, std::int64_t used,
                                     const Tensor& all_statistics, std::int64_t parts,
                                     const Tensor& losses, bool with_gradient, float gradient_scale,
                                     std::int64_t rows) {
  const Arguments a("cross_entropy_join");
  const std::int64_t classes = logits.dim(1);
  a.with_type_of(logits, "logits", [&]<class T>(T) {
    cuda::cross_entropy_join<T>(a.get<T>(logits, "logits", rows * classes),
                                a.get<std::int32_t>(targets, "targets", rows), first_class, used,
                                a.get<float>(all_statistics, "all_statistics", parts * rows * 3),
                                parts, a.get<float>(losses, "losses", rows), with_gradient,
                                gradient_scale, rows, classes, stream());
  });
}
