#include "trainer/matrix_peak.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace scone {

double measure_matrix_peak(Backend& backend, DType dtype) {
  const std::int64_t size = backend.device() == Device::cpu ? 1024 : 8192;
  const auto make = [&] { return Tensor::zeros({size, size}, dtype, backend.device()); };
  const Tensor x = make(), weight = make(), y = make();
  backend.synchronize();
  double best = 0;
  for (int repeat = 0; repeat < 6; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    backend.linear(x, weight, {}, {}, y, size);
    backend.synchronize();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    if (repeat > 0)
      best = std::max(best, 2.0 * std::pow(static_cast<double>(size), 3) / seconds.count());
  }
  return best;
}

}  // namespace scone
