#include "trainer/matrix_peak.h"

#include <algorithm>
#include <chrono>

namespace scone {

double measure_matrix_peak(Backend& backend) {
  constexpr std::int64_t size = 1024;
  const Tensor x = Tensor::zeros({size, size}), weight = Tensor::zeros({size, size}),
               y = Tensor::zeros({size, size});
  double best = 0;
  for (int repeat = 0; repeat < 6; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    backend.linear(x, weight, {}, {}, y, size);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    if (repeat > 0) best = std::max(best, 2.0 * size * size * size / seconds.count());
  }
  return best;
}

}  // namespace scone
