#include "trainer/embedding_source.h"

#include <algorithm>
#include <cstring>

namespace scone {

Tensor reserve_rows(Tensor& buffer, std::int64_t rows, std::int64_t width) {
  const std::int64_t needed = std::max<std::int64_t>(rows, 1);
  if (buffer.empty() || buffer.dim(0) < needed || buffer.dim(1) != width)
    buffer = Tensor::zeros({needed + needed / 8, width});
  return buffer.rows(0, needed);
}

void LiveFgramSource::rows(std::span<const std::int64_t> ids, const Tensor& out) {
  trie_ = build_fgram_trie(vocabulary_, ids);
  const Tensor node_rows = reserve_rows(node_rows_, trie_.size(), width_);
  model_.forward(nodes(), node_rows);
  const auto row_bytes = static_cast<std::size_t>(width_) * sizeof(float);
  const float* source = node_rows.data<float>();
  auto* target = out.data<float>();
  const auto count = static_cast<std::int64_t>(ids.size());
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < count; ++i)
    std::memcpy(target + i * width_,
                source + trie_.node_of_fgram[static_cast<std::size_t>(i)] * width_, row_bytes);
}

void LiveFgramSource::backward(const Tensor& row_gradients) {
  const Tensor node_gradients = reserve_rows(node_rows_, trie_.size(), width_);
  auto values = node_gradients.span<float>();
  const auto elements = static_cast<std::int64_t>(values.size());
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < elements; ++i) values[static_cast<std::size_t>(i)] = 0.0F;
  const auto row_bytes = static_cast<std::size_t>(width_) * sizeof(float);
  const float* source = row_gradients.data<float>();
  const auto count = static_cast<std::int64_t>(trie_.node_of_fgram.size());
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < count; ++i)  // distinct nodes
    std::memcpy(values.data() + trie_.node_of_fgram[static_cast<std::size_t>(i)] * width_,
                source + i * width_, row_bytes);
  model_.backward(nodes(), node_gradients);
}

}  // namespace scone
