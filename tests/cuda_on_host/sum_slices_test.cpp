#include "tests/parallel/sum_slices_checks.h"

namespace scone {
namespace {

TEST(SumSlices, InRankOrderRoundedOnce) {
  open_cuda_device(0);
  check_sum_slices({0, 1, 21, 2056, 300001});
}

}  // namespace
}  // namespace scone
