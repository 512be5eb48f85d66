#include <algorithm>

#include "model/ops/cpu/cpu_backend.h"

namespace scone {

void CpuBackend::embed(const EmbeddingInput& input, const Tensor& token_embedding,
                       const Tensor& position_embedding, const Tensor& rows, const Tensor& out,
                       std::int64_t count) {
  const std::int64_t width = token_embedding.dim(1);
  const std::int32_t* token = input.tokens.data<std::int32_t>();
  const std::int32_t* position = input.positions.data<std::int32_t>();
  const std::int32_t* row_of = input.row_of_position.data<std::int32_t>();
  const float* tokens = token_embedding.data<float>();
  const float* positions = position_embedding.data<float>();
  const float* table = rows.data<float>();
  float* output = out.data<float>();
  const bool add = input.combine == CombineKind::add;
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < count; ++i) {
    float* to = output + i * width;
    const std::int64_t row = row_of == nullptr ? -1 : row_of[i];
    const auto add_to = [to, width](const float* own) {
      for (std::int64_t j = 0; j < width; ++j) to[j] += own[j];
    };
    const bool takes_token = token[i] >= 0 && (row == -1 || add);
    const float* own = tokens + token[i] * width;
    if (row >= 0) {
      std::copy_n(table + row * width, width, to);
      if (takes_token) add_to(own);
    } else if (takes_token) {
      std::copy_n(own, width, to);
    } else {
      std::fill_n(to, width, 0.0F);
    }
    if (positions != nullptr) add_to(positions + position[i] * width);
  }
}

void CpuBackend::embed_backward(const EmbeddingInput& input, const Tensor& d_out,
                                const Tensor& d_token_embedding, const Tensor& d_position_embedding,
                                const Tensor& d_rows, std::int64_t count) {
  const std::int64_t width = d_token_embedding.dim(1);
  const std::int32_t* token = input.tokens.data<std::int32_t>();
  const std::int32_t* position = input.positions.data<std::int32_t>();
  const std::int32_t* row_of = input.row_of_position.data<std::int32_t>();
  float* d_tokens = d_token_embedding.data<float>();
  float* d_positions = d_position_embedding.data<float>();
  float* d_table = d_rows.data<float>();
  const float* gradient = d_out.data<float>();
  const bool add = input.combine == CombineKind::add;
  // A slice of columns belongs to one thread, which adds in the order of positions.
  constexpr std::int64_t kSlice = 32;
#pragma omp parallel for schedule(static)
  for (std::int64_t slice = 0; slice < (width + kSlice - 1) / kSlice; ++slice) {
    const std::int64_t begin = slice * kSlice, n = std::min(kSlice, width - begin);
    const auto add_to = [n](float* to, const float* from) {
#pragma omp simd
      for (std::int64_t j = 0; j < n; ++j) to[j] += from[j];
    };
    for (std::int64_t i = 0; i < count; ++i) {
      const float* from = gradient + i * width + begin;
      const std::int64_t row = row_of == nullptr ? -1 : row_of[i];
      if (row >= 0) add_to(d_table + row * width + begin, from);
      if (token[i] >= 0 && (row == -1 || add)) add_to(d_tokens + token[i] * width + begin, from);
      if (d_positions != nullptr) add_to(d_positions + position[i] * width + begin, from);
    }
  }
}

}  // namespace scone
