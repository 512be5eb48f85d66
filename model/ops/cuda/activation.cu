#include "model/ops/cuda/activation.h"
#include "model/ops/cuda/kernel_tools.h"
#include "parallel/cuda/launch.h"

namespace scone::cuda {
namespace {

constexpr int kThreads = 256;
constexpr float kSqrtTwoOverPi = 0.7978845608028654F;
constexpr float kCubic = 0.044715F;

__device__ __forceinline__ float sigmoid(float x) { return 1.0F / (1.0F + expf(-x)); }

/// 0.5 (1 + tanh(inner)) = sigmoid(2 inner), which keeps its relative accuracy far below zero.
__device__ __forceinline__ float gelu_gate(float x) {
  return sigmoid(2.0F * kSqrtTwoOverPi * (x + kCubic * x * x * x));
}

template <class T, int kPack>
__global__ void __launch_bounds__(kThreads) gelu_forward(const T* x, T* y, std::int64_t elements) {
  for_each_pack<kPack>(elements, [&]<int kSize>(std::int64_t at) {
    float values[kSize];
    load_floats(x + at, values);
#pragma unroll
    for (int i = 0; i < kSize; ++i) values[i] *= gelu_gate(values[i]);
    store_floats(y + at, values);
  });
}

template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    gelu_gradient(const T* d_y, const T* x, T* d_x, std::int64_t elements) {
  for_each_pack<kPack>(elements, [&]<int kSize>(std::int64_t at) {
    float values[kSize], gradients[kSize];
    load_floats(x + at, values);
    load_floats(d_y + at, gradients);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float value = values[i], gate = gelu_gate(value);
      const float slope = kSqrtTwoOverPi * (1.0F + 3.0F * kCubic * value * value);
      gradients[i] *= gate + 2.0F * value * gate * (1.0F - gate) * slope;
    }
    store_floats(d_x + at, gradients);
  });
}

template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    swiglu_forward(const T* gate, const T* up, T* y, std::int64_t elements) {
  for_each_pack<kPack>(elements, [&]<int kSize>(std::int64_t at) {
    float gates[kSize], values[kSize];
    load_floats(gate + at, gates);
    load_floats(up + at, values);
#pragma unroll
    for (int i = 0; i < kSize; ++i) values[i] *= gates[i] * sigmoid(gates[i]);
    store_floats(y + at, values);
  });
}

template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    swiglu_gradient(const T* d_y, const T* gate, const T* up, T* d_gate, T* d_up,
                    std::int64_t elements) {
  for_each_pack<kPack>(elements, [&]<int kSize>(std::int64_t at) {
    float gates[kSize], values[kSize], gradients[kSize];
    load_floats(gate + at, gates);
    load_floats(up + at, values);
    load_floats(d_y + at, gradients);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float share = sigmoid(gates[i]), d = gradients[i];
      gradients[i] = d * gates[i] * share;
      gates[i] = d * values[i] * share * (1.0F + gates[i] * (1.0F - share));
    }
    store_floats(d_gate + at, gates);
    store_floats(d_up + at, gradients);
  });
}

}  // namespace

template <class T>
void gelu(const T* x, T* y, std::int64_t elements, cudaStream_t stream) {
  constexpr int kPack = Pack<T>::kSize;
  if (fits_packs(kPack, x, y)) {
    launch<gelu_forward<T, kPack>>({blocks_for_packs(elements, kPack, kThreads), kThreads}, stream,
                                   x, y, elements);
  } else {
    launch<gelu_forward<T, 1>>({blocks_for_packs(elements, 1, kThreads), kThreads}, stream, x, y,
                               elements);
  }
}

template <class T>
void gelu_backward(const T* d_y, const T* x, T* d_x, std::int64_t elements, cudaStream_t stream) {
  constexpr int kPack = Pack<T>::kSize;
  if (fits_packs(kPack, d_y, x, d_x)) {
    launch<gelu_gradient<T, kPack>>({blocks_for_packs(elements, kPack, kThreads), kThreads}, stream,
                                    d_y, x, d_x, elements);
  } else {
    launch<gelu_gradient<T, 1>>({blocks_for_packs(elements, 1, kThreads), kThreads}, stream, d_y, x,
                                d_x, elements);
  }
}

template <class T>
void swiglu(const T* gate, const T* up, T* y, std::int64_t elements, cudaStream_t stream) {
  constexpr int kPack = Pack<T>::kSize;
  if (fits_packs(kPack, gate, up, y)) {
    launch<swiglu_forward<T, kPack>>({blocks_for_packs(elements, kPack, kThreads), kThreads},
                                     stream, gate, up, y, elements);
  } else {
    launch<swiglu_forward<T, 1>>({blocks_for_packs(elements, 1, kThreads), kThreads}, stream, gate,
                                 up, y, elements);
  }
}

template <class T>
void swiglu_backward(const T* d_y, const T* gate, const T* up, T* d_gate, T* d_up,
                     std::int64_t elements, cudaStream_t stream) {
  constexpr int kPack = Pack<T>::kSize;
  if (fits_packs(kPack, d_y, gate, up, d_gate, d_up)) {
    launch<swiglu_gradient<T, kPack>>({blocks_for_packs(elements, kPack, kThreads), kThreads},
                                      stream, d_y, gate, up, d_gate, d_up, elements);
  } else {
    launch<swiglu_gradient<T, 1>>({blocks_for_packs(elements, 1, kThreads), kThreads}, stream, d_y,
                                  gate, up, d_gate, d_up, elements);
  }
}

#define INSTANTIATE(T)                                                             \
  template void gelu(const T*, T*, std::int64_t, cudaStream_t);                    \
  template void gelu_backward(const T*, const T*, T*, std::int64_t, cudaStream_t); \
  template void swiglu(const T*, const T*, T*, std::int64_t, cudaStream_t);        \
  template void swiglu_backward(const T*, const T*, const T*, T*, T*, std::int64_t, cudaStream_t)
INSTANTIATE(float);
INSTANTIATE(__nv_bfloat16);
#undef INSTANTIATE

}  // namespace scone::cuda
