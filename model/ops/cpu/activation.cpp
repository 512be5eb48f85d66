#include "model/ops/cpu/cpu_backend.h"
#include "model/ops/cpu/vector_math.h"

namespace scone {
namespace {
constexpr float kSqrtTwoOverPi = 0.7978845608028654F;
constexpr float kCubic = 0.044715F;
}  // namespace

void CpuBackend::gelu(const Tensor& x, const Tensor& y, std::int64_t elements) {
  const float* in = x.data<float>();
  float* out = y.data<float>();
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < elements; ++i) {
    const float value = in[i];
    const float inner = kSqrtTwoOverPi * (value + kCubic * value * value * value);
    out[i] = value * (1.0F - 1.0F / (fast_exp(2.0F * inner) + 1.0F));
  }
}

void CpuBackend::gelu_backward(const Tensor& d_y, const Tensor& x, const Tensor& d_x,
                               std::int64_t elements) {
  const float* dy = d_y.data<float>();
  const float* in = x.data<float>();
  float* dx = d_x.data<float>();
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < elements; ++i) {
    const float value = in[i];
    const float t = fast_tanh(kSqrtTwoOverPi * (value + kCubic * value * value * value));
    const float slope = kSqrtTwoOverPi * (1.0F + 3.0F * kCubic * value * value);
    dx[i] = dy[i] * (0.5F * (1.0F + t) + 0.5F * value * (1.0F - t * t) * slope);
  }
}

void CpuBackend::swiglu(const Tensor& gate, const Tensor& up, const Tensor& y,
                        std::int64_t elements) {
  const float* g = gate.data<float>();
  const float* u = up.data<float>();
  float* out = y.data<float>();
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < elements; ++i) out[i] = g[i] * u[i] / (1.0F + fast_exp(-g[i]));
}

void CpuBackend::swiglu_backward(const Tensor& d_y, const Tensor& gate, const Tensor& up,
                                 const Tensor& d_gate, const Tensor& d_up, std::int64_t elements) {
  const float* dy = d_y.data<float>();
  const float* g = gate.data<float>();
  const float* u = up.data<float>();
  float* dg = d_gate.data<float>();
  float* du = d_up.data<float>();
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < elements; ++i) {
    const float sigmoid = 1.0F / (1.0F + fast_exp(-g[i]));
    const float d = dy[i];
    dg[i] = d * u[i] * sigmoid * (1.0F + g[i] * (1.0F - sigmoid));
    du[i] = d * g[i] * sigmoid;
  }
}

}  // namespace scone
