#pragma once

#include <cuda_bf16.h>
#include <fmt/format.h>

#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "model/tensor.h"

namespace scone::cuda {

template <class T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, float>) {
    return DType::fp32;
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return DType::bf16;
  } else {
    static_assert(std::is_same_v<T, std::int32_t>);
    return DType::int32;
  }
}

/// The tensors of one operation, checked: std::logic_error names the operation and the argument.
class Arguments {
 public:
  explicit Arguments(const char* operation) : operation_(operation) {}

  /// Device pointer of a tensor with at least `elements` elements of type T, and of any where none
  /// are needed.
  template <class T>
  T* get(const Tensor& tensor, const char* name, std::int64_t elements) const {
    const bool fits = tensor.device() == Device::cuda && tensor.dtype() == dtype_of<T>() &&
                      tensor.elements() >= elements;
    if (!fits && elements > 0) refuse(tensor, name, name_of(dtype_of<T>()), elements);
    return static_cast<T*>(tensor.raw());
  }

  /// The same; null where the tensor is empty.
  template <class T>
  T* get_optional(const Tensor& tensor, const char* name, std::int64_t elements) const {
    return tensor.empty() ? nullptr : get<T>(tensor, name, elements);
  }

  /// body(float{}) or body(__nv_bfloat16{}) by the tensor's type.
  template <class Body>
  void with_type_of(const Tensor& tensor, const char* name, Body body) const {
    if (tensor.dtype() == DType::fp32) {
      body(float{});
    } else if (tensor.dtype() == DType::bf16) {
      body(__nv_bfloat16{});
    } else {
      refuse(tensor, name, "fp32 or bf16", 0);
    }
  }

  /// Throws unless `tensor` lies at a multiple of `bytes`.
  void aligned(const Tensor& tensor, const char* name, std::uintptr_t bytes) const {
    if (reinterpret_cast<std::uintptr_t>(tensor.raw()) % bytes == 0) return;
    throw std::logic_error(
        fmt::format("CUDA {}: {} is not aligned to {} bytes", operation_, name, bytes));
  }

 private:
  [[noreturn]] void refuse(const Tensor& tensor, const char* name, const char* type,
                           std::int64_t elements) const {
    throw std::logic_error(
        fmt::format("CUDA {}: {} is {} of the {}, wanted: {} of the CUDA device, {} elements",
                    operation_, name, describe(tensor),
                    tensor.device() == Device::cuda ? "CUDA device" : "processor", type, elements));
  }

  const char* operation_;
};

}  // namespace scone::cuda
