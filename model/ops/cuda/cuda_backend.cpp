#include "model/ops/cuda/cuda_backend.h"

#include <cuda_bf16.h>
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "model/ops/cuda/activation.h"
#include "model/ops/cuda/arguments.h"
#include "model/ops/cuda/elementwise.h"
#include "model/ops/cuda/norm.h"
#include "model/ops/cuda/optimizer.h"
#include "parallel/bf16.h"

namespace scone {
namespace {

using cuda::Arguments;

std::shared_ptr<void> allocate_zeroed(std::size_t bytes) {
  auto buffer = std::make_shared<cuda::DeviceBuffer>(bytes);
  cuda::check(cudaMemsetAsync(buffer->data(), 0, bytes, cuda_device().compute()),
              "cudaMemsetAsync");
  return {buffer, buffer->data()};
}

}  // namespace

CudaBackend::CudaBackend(const cuda::MatrixProductOptions& options)
    : device_(cuda_device()),
      stream_(device_.compute()),
      products_(stream_, options),
      uploads_(stream_),
      downloads_(stream_) {}

CudaBackend::Scratch CudaBackend::scratch(std::int64_t bytes) {
  std::unique_lock lock(scratch_mutex_);
  const auto wanted = static_cast<std::size_t>(bytes);
  if (wanted > scratch_.bytes()) {
    scratch_ = {};  // waits for the work that uses it
    scratch_ = cuda::DeviceBuffer(wanted);
  }
  return {std::move(lock), scratch_.data()};
}

// Moving data.

void CudaBackend::upload(std::span<const std::int32_t> source, const Tensor& target) {
  const auto elements = static_cast<std::int64_t>(source.size());
  uploads_.upload(source.data(), Arguments("upload").get<std::int32_t>(target, "target", elements),
                  source.size_bytes());
}

void CudaBackend::upload(std::span<const float> source, const Tensor& target) {
  const Arguments arguments("upload");
  const auto elements = static_cast<std::int64_t>(source.size());
  if (target.dtype() != DType::bf16) {
    uploads_.upload(source.data(), arguments.get<float>(target, "target", elements),
                    source.size_bytes());
    return;
  }
  uploads_.upload(
      [source](std::byte* memory, std::size_t begin, std::size_t count) {
        auto* rounded = reinterpret_cast<Bf16*>(memory);
        for (std::size_t i = 0; i < count; ++i) rounded[i] = to_bf16(source[begin + i]);
      },
      arguments.get<__nv_bfloat16>(target, "target", elements), source.size(), sizeof(Bf16));
}

void CudaBackend::download(const Tensor& source, std::span<float> target) {
  const Arguments arguments("download");
  const auto elements = static_cast<std::int64_t>(target.size());
  if (source.dtype() != DType::bf16) {
    downloads_.download(arguments.get<float>(source, "source", elements), target.data(),
                        target.size_bytes());
    return;
  }
  downloads_.download(
      arguments.get<__nv_bfloat16>(source, "source", elements),
      [target](const std::byte* memory, std::size_t begin, std::size_t count) {
        const auto* rounded = reinterpret_cast<const Bf16*>(memory);
        for (std::size_t i = 0; i < count; ++i) target[begin + i] = to_float(rounded[i]);
      },
      target.size(), sizeof(Bf16));
}

void CudaBackend::copy(const Tensor& source, const Tensor& target) {
  const Arguments arguments("copy");
  const std::int64_t elements = source.elements();
  if (elements == 0) return;
  if (source.dtype() == target.dtype() && source.device() == Device::cuda) {
    if (target.device() != Device::cuda || target.elements() < elements) {
      throw std::logic_error(
          fmt::format("CUDA copy: from {} to {} of the {}", describe(source), describe(target),
                      target.device() == Device::cuda ? "CUDA device" : "processor"));
    }
    cuda::check(cudaMemcpyAsync(target.raw(), source.raw(), source.bytes(),
                                cudaMemcpyDeviceToDevice, stream()),
                "cudaMemcpyAsync on the device");
  } else if (source.dtype() == DType::bf16) {
    cuda::convert(arguments.get<__nv_bfloat16>(source, "source", elements),
                  arguments.get<float>(target, "target", elements), elements, stream());
  } else {
    cuda::convert(arguments.get<float>(source, "source", elements),
                  arguments.get<__nv_bfloat16>(target, "target", elements), elements, stream());
  }
}

void CudaBackend::zero(const Tensor& target) {
  if (target.empty()) return;
  if (target.device() != Device::cuda) {
    throw std::logic_error(fmt::format("CUDA zero: {} of the processor", describe(target)));
  }
  cuda::check(cudaMemsetAsync(target.raw(), 0, target.bytes(), stream()), "cudaMemsetAsync");
}

void CudaBackend::synchronize() { device_.wait(stream_); }

// Linear layers.

void CudaBackend::linear(const Tensor& x, const Tensor& weight, const Tensor& bias,
                         const Tensor& residual, const Tensor& y, std::int64_t rows) {
  const Arguments a("linear");
  const std::int64_t out = weight.dim(0), in = weight.dim(1);
  a.with_type_of(weight, "weight", [&]<class T>(T) {
    products_.linear<T>(a.get<T>(x, "x", rows * in), a.get<T>(weight, "weight", out * in),
                        a.get_optional<T>(bias, "bias", out),
                        a.get_optional<T>(residual, "residual", rows * out),
                        a.get<T>(y, "y", rows * out), rows, in, out);
  });
}

void CudaBackend::linear_backward_input(const Tensor& d_y, const Tensor& weight, const Tensor& d_x,
                                        bool accumulate, std::int64_t rows) {
  const Arguments a("linear_backward_input");
  const std::int64_t out = weight.dim(0), in = weight.dim(1);
  a.with_type_of(weight, "weight", [&]<class T>(T) {
    products_.linear_backward_input<T>(a.get<T>(d_y, "d_y", rows * out),
                                       a.get<T>(weight, "weight", out * in),
                                       a.get<T>(d_x, "d_x", rows * in), accumulate, rows, in, out);
  });
}

void CudaBackend::linear_gelu(const Tensor& x, const Tensor& weight, const Tensor& bias,
                              const Tensor& pre, const Tensor& y, std::int64_t rows) {
  const Arguments a("linear_gelu");
  const std::int64_t out = weight.dim(0), in = weight.dim(1);
  a.with_type_of(weight, "weight", [&]<class T>(T) {
    products_.linear_gelu<T>(a.get<T>(x, "x", rows * in), a.get<T>(weight, "weight", out * in),
                             a.get_optional<T>(bias, "bias", out), a.get<T>(pre, "pre", rows * out),
                             a.get<T>(y, "y", rows * out), rows, in, out);
  });
}

void CudaBackend::linear_gelu_backward_input(const Tensor& d_y, const Tensor& weight,
                                             const Tensor& pre, const Tensor& d_pre,
                                             std::int64_t rows) {
  const Arguments a("linear_gelu_backward_input");
  const std::int64_t out = weight.dim(0), in = weight.dim(1);
  a.with_type_of(weight, "weight", [&]<class T>(T) {
    products_.linear_gelu_backward_input<T>(
        a.get<T>(d_y, "d_y", rows * out), a.get<T>(weight, "weight", out * in),
        a.get<T>(pre, "pre", rows * in), a.get<T>(d_pre, "d_pre", rows * in), rows, in, out);
  });
}

void CudaBackend::linear_backward_weight(const Tensor& d_y, const Tensor& x, const Tensor& d_weight,
                                         const Tensor& d_bias, std::int64_t rows) {
  const Arguments a("linear_backward_weight");
  const std::int64_t out = d_weight.dim(0), in = d_weight.dim(1);
  a.with_type_of(d_y, "d_y", [&]<class T>(T) {
    products_.linear_backward_weight<T>(
        a.get<T>(d_y, "d_y", rows * out), a.get<T>(x, "x", rows * in),
        a.get<float>(d_weight, "d_weight", out * in), a.get_optional<float>(d_bias, "d_bias", out),
        rows, in, out);
  });
}

// Norms and activations.

void CudaBackend::norm(NormKind kind, const Tensor& x, const Tensor& gain, const Tensor& bias,
                       const Tensor& y, const Tensor& statistics, std::int64_t rows) {
  const Arguments a("norm");
  const std::int64_t width = gain.elements();
  a.with_type_of(x, "x", [&]<class T>(T) {
    cuda::norm<T>(kind, a.get<T>(x, "x", rows * width), a.get<T>(gain, "gain", width),
                  a.get_optional<T>(bias, "bias", width), a.get<T>(y, "y", rows * width),
                  a.get<float>(statistics, "statistics", rows * 2), rows, width, stream());
  });
}

void CudaBackend::norm_backward(NormKind kind, const Tensor& d_y, const Tensor& x,
                                const Tensor& gain, const Tensor& statistics, const Tensor& d_x,
                                bool accumulate, const Tensor& d_gain, const Tensor& d_bias,
                                std::int64_t rows) {
  const Arguments a("norm_backward");
  const std::int64_t width = gain.elements();
  const Scratch work = scratch(cuda::norm_backward_workspace_bytes(rows, width));
  a.with_type_of(x, "x", [&]<class T>(T) {
    cuda::norm_backward<T>(
        kind, a.get<T>(d_y, "d_y", rows * width), a.get<T>(x, "x", rows * width),
        a.get<T>(gain, "gain", width), a.get<float>(statistics, "statistics", rows * 2),
        a.get<T>(d_x, "d_x", rows * width), accumulate, a.get<float>(d_gain, "d_gain", width),
        a.get_optional<float>(d_bias, "d_bias", width), rows, width, work.data, stream());
  });
}

void CudaBackend::gelu(const Tensor& x, const Tensor& y, std::int64_t elements) {
  const Arguments a("gelu");
  a.with_type_of(x, "x", [&]<class T>(T) {
    cuda::gelu<T>(a.get<T>(x, "x", elements), a.get<T>(y, "y", elements), elements, stream());
  });
}

void CudaBackend::gelu_backward(const Tensor& d_y, const Tensor& x, const Tensor& d_x,
                                std::int64_t elements) {
  const Arguments a("gelu_backward");
  a.with_type_of(x, "x", [&]<class T>(T) {
    cuda::gelu_backward<T>(a.get<T>(d_y, "d_y", elements), a.get<T>(x, "x", elements),
                           a.get<T>(d_x, "d_x", elements), elements, stream());
  });
}

void CudaBackend::swiglu(const Tensor& gate, const Tensor& up, const Tensor& y,
                         std::int64_t elements) {
  const Arguments a("swiglu");
  a.with_type_of(gate, "gate", [&]<class T>(T) {
    cuda::swiglu<T>(a.get<T>(gate, "gate", elements), a.get<T>(up, "up", elements),
                    a.get<T>(y, "y", elements), elements, stream());
  });
}

void CudaBackend::swiglu_backward(const Tensor& d_y, const Tensor& gate, const Tensor& up,
                                  const Tensor& d_gate, const Tensor& d_up, std::int64_t elements) {
  const Arguments a("swiglu_backward");
  a.with_type_of(gate, "gate", [&]<class T>(T) {
    cuda::swiglu_backward<T>(a.get<T>(d_y, "d_y", elements), a.get<T>(gate, "gate", elements),
                             a.get<T>(up, "up", elements), a.get<T>(d_gate, "d_gate", elements),
                             a.get<T>(d_up, "d_up", elements), elements, stream());
  });
}

// The optimizer's operations.

void CudaBackend::adamw(const AdamwTensors& tensors, std::span<const AdamwRange> ranges,
                        const AdamwStep& step) {
  const Arguments a("adamw");
  std::int64_t values = 0, states = 0;
  for (const AdamwRange& range : ranges) {
    values = std::max(values, range.value_begin + range.count);
    states = std::max(states, range.state_begin + range.count);
  }
  cuda::adamw({a.get<float>(tensors.values, "values", values),
               a.get<float>(tensors.gradients, "gradients", states),
               a.get<float>(tensors.m, "m", states), a.get<float>(tensors.v, "v", states),
               a.get_optional<__nv_bfloat16>(tensors.working, "working", values)},
              ranges, step, stream());
}

template <class Sum>
double CudaBackend::number(std::span<const cuda::FloatSpan> parts, Sum of_all) {
  const std::int64_t bytes = cuda::sum_workspace_bytes(parts);
  const Scratch work = scratch(bytes + static_cast<std::int64_t>(sizeof(double)));
  auto* result = reinterpret_cast<double*>(work.data + bytes);
  of_all(parts, result, work.data, stream());
  double value = 0;
  downloads_.download(result, &value, sizeof value);
  return value;
}

double CudaBackend::squared_norm(std::span<const Tensor> parts) {
  const Arguments a("squared_norm");
  std::vector<cuda::FloatSpan> spans;
  for (const Tensor& part : parts) {
    spans.push_back({a.get<float>(part, "a part", part.elements()), part.elements()});
  }
  return number(spans, cuda::squared_norm);
}

double CudaBackend::sum(const Tensor& x) {
  const cuda::FloatSpan part{Arguments("sum").get<float>(x, "x", x.elements()), x.elements()};
  return number(std::span(&part, 1), cuda::sum);
}

// Opening it.

namespace {

struct OpenedBackend {
  std::mutex mutex;
  std::unique_ptr<CudaBackend> backend;
  cuda::MatrixProductOptions options;
};

OpenedBackend& opened() {
  static OpenedBackend opened_backend;
  return opened_backend;
}

CudaBackend& open_with(const cuda::MatrixProductOptions& options) {
  opened().backend = std::make_unique<CudaBackend>(options);
  opened().options = options;
  register_device_memory(Device::cuda, allocate_zeroed);
  return *opened().backend;
}

}  // namespace

CudaBackend& open_cuda_backend(const cuda::MatrixProductOptions& options) {
  const std::lock_guard lock(opened().mutex);
  if (opened().backend == nullptr) return open_with(options);
  if (opened().options != options) {
    throw std::logic_error("the CUDA backend is open with other options");
  }
  return *opened().backend;
}

CudaBackend& cuda_backend() {
  const std::lock_guard lock(opened().mutex);
  return opened().backend != nullptr ? *opened().backend : open_with({});
}

}  // namespace scone
