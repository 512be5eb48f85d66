#include "model/ops/cpu/element.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/ops/cpu/activation.cpp"
#include <hwy/foreach_target.h>

#include "model/ops/cpu/cpu_backend.h"
#include "model/ops/cpu/gelu.h"
#include "model/ops/cpu/vector_math.h"

HWY_BEFORE_NAMESPACE();
namespace scone::HWY_NAMESPACE {
namespace {

template <class T>
void gelu_all(const T* x, T* y, std::int64_t elements) {
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < elements; ++i) y[i] = from_float<T>(gelu_of(to_float(x[i])));
}

template <class T>
void gelu_backward_all(const T* d_y, const T* x, T* d_x, std::int64_t elements) {
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < elements; ++i)
    d_x[i] = from_float<T>(to_float(d_y[i]) * gelu_slope(to_float(x[i])));
}

template <class T>
void swiglu_all(const T* gate, const T* up, T* y, std::int64_t elements) {
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < elements; ++i) {
    const float g = to_float(gate[i]);
    y[i] = from_float<T>(g * to_float(up[i]) / (1.0F + fast_exp(-g)));
  }
}

template <class T>
void swiglu_backward_all(const T* d_y, const T* gate, const T* up, T* d_gate, T* d_up,
                         std::int64_t elements) {
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < elements; ++i) {
    const float g = to_float(gate[i]), u = to_float(up[i]), d = to_float(d_y[i]);
    const float sigmoid = 1.0F / (1.0F + fast_exp(-g));
    d_gate[i] = from_float<T>(d * u * sigmoid * (1.0F + g * (1.0F - sigmoid)));
    d_up[i] = from_float<T>(d * g * sigmoid);
  }
}

}  // namespace

void CpuBackend::gelu(const Tensor& x, const Tensor& y, std::int64_t elements) {
  if (is_bf16(x))
    gelu_all(x.data<Bf16>(), y.data<Bf16>(), elements);
  else
    gelu_all(x.data<float>(), y.data<float>(), elements);
}

void CpuBackend::gelu_backward(const Tensor& d_y, const Tensor& x, const Tensor& d_x,
                               std::int64_t elements) {
  if (is_bf16(x))
    gelu_backward_all(d_y.data<Bf16>(), x.data<Bf16>(), d_x.data<Bf16>(), elements);
  else
    gelu_backward_all(d_y.data<float>(), x.data<float>(), d_x.data<float>(), elements);
}

void CpuBackend::swiglu(const Tensor& gate, const Tensor& up, const Tensor& y,
                        std::int64_t elements) {
  if (is_bf16(gate))
    swiglu_all(gate.data<Bf16>(), up.data<Bf16>(), y.data<Bf16>(), elements);
  else
    swiglu_all(gate.data<float>(), up.data<float>(), y.data<float>(), elements);
}

void CpuBackend::swiglu_backward(const Tensor& d_y, const Tensor& gate, const Tensor& up,
                                 const Tensor& d_gate, const Tensor& d_up, std::int64_t elements) {
  if (is_bf16(gate))
    swiglu_backward_all(d_y.data<Bf16>(), gate.data<Bf16>(), up.data<Bf16>(), d_gate.data<Bf16>(),
                        d_up.data<Bf16>(), elements);
  else
    swiglu_backward_all(d_y.data<float>(), gate.data<float>(), up.data<float>(),
                        d_gate.data<float>(), d_up.data<float>(), elements);
}

}  // namespace scone::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
