#include <algorithm>

#include "model/ops/cpu/element.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/ops/cpu/embedding.cpp"
#include <hwy/foreach_target.h>

#include "model/ops/cpu/cpu_backend.h"

HWY_BEFORE_NAMESPACE();
namespace scone::HWY_NAMESPACE {
namespace {

template <class T, class From>
void set_to(T* to, const From* from, std::int64_t width) {
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) to[j] = from_float<T>(to_float(from[j]));
}

template <class T, class From>
void add_to(T* to, const From* from, std::int64_t width) {
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j)
    to[j] = from_float<T>(to_float(to[j]) + to_float(from[j]));
}

template <class T>
void embed_of(const EmbeddingInput& input, const Tensor& token_embedding,
              const Tensor& position_embedding, const Tensor& rows, const Tensor& out,
              std::int64_t count) {
  const std::int64_t width = token_embedding.dim(1);
  const std::int32_t* token = input.tokens.data<std::int32_t>();
  const std::int32_t* position = input.positions.data<std::int32_t>();
  const std::int32_t* row_of = input.row_of_position.data<std::int32_t>();
  const T* tokens = token_embedding.data<T>();
  const T* positions = position_embedding.data<T>();
  const float* table = rows.data<float>();
  T* output = out.data<T>();
  const bool add = input.combine == CombineKind::add;
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < count; ++i) {
    T* to = output + i * width;
    const std::int64_t row = row_of == nullptr ? -1 : row_of[i];
    const bool takes_token = token[i] >= 0 && (row == -1 || add);
    const T* own = tokens + token[i] * width;
    if (row >= 0) {
      set_to(to, table + row * width, width);
      if (takes_token) add_to(to, own, width);
    } else if (takes_token) {
      std::copy_n(own, width, to);
    } else {
      std::fill_n(to, width, from_float<T>(0.0F));
    }
    if (positions != nullptr) add_to(to, positions + position[i] * width, width);
  }
}

template <class T>
void embed_backward_of(const EmbeddingInput& input, const Tensor& d_out,
                       const Tensor& d_token_embedding, const Tensor& d_position_embedding,
                       const Tensor& d_rows, std::int64_t count) {
  const std::int64_t width = d_token_embedding.dim(1);
  const std::int32_t* token = input.tokens.data<std::int32_t>();
  const std::int32_t* position = input.positions.data<std::int32_t>();
  const std::int32_t* row_of = input.row_of_position.data<std::int32_t>();
  float* d_tokens = d_token_embedding.data<float>();
  float* d_positions = d_position_embedding.data<float>();
  float* d_table = d_rows.data<float>();
  const T* gradient = d_out.data<T>();
  const bool add = input.combine == CombineKind::add;
  // A slice of columns belongs to one thread, which adds in the order of positions.
  constexpr std::int64_t kSlice = 32;
#pragma omp parallel for schedule(static)
  for (std::int64_t slice = 0; slice < (width + kSlice - 1) / kSlice; ++slice) {
    const std::int64_t begin = slice * kSlice, n = std::min(kSlice, width - begin);
    for (std::int64_t i = 0; i < count; ++i) {
      const T* from = gradient + i * width + begin;
      const std::int64_t row = row_of == nullptr ? -1 : row_of[i];
      if (row >= 0) add_to(d_table + row * width + begin, from, n);
      if (token[i] >= 0 && (row == -1 || add)) add_to(d_tokens + token[i] * width + begin, from, n);
      if (d_positions != nullptr) add_to(d_positions + position[i] * width + begin, from, n);
    }
  }
}

}  // namespace

void CpuBackend::embed(const EmbeddingInput& input, const Tensor& token_embedding,
                       const Tensor& position_embedding, const Tensor& rows, const Tensor& out,
                       std::int64_t count) {
  (is_bf16(out) ? embed_of<Bf16> : embed_of<float>)(input, token_embedding, position_embedding,
                                                    rows, out, count);
}

void CpuBackend::embed_backward(const EmbeddingInput& input, const Tensor& d_out,
                                const Tensor& d_token_embedding, const Tensor& d_position_embedding,
                                const Tensor& d_rows, std::int64_t count) {
  (is_bf16(d_out) ? embed_backward_of<Bf16>
                  : embed_backward_of<float>)(input, d_out, d_token_embedding, d_position_embedding,
                                              d_rows, count);
}

}  // namespace scone::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
