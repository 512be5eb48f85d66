#include <gtest/gtest.h>

#include "row_exchange_checks.h"

namespace scone {
namespace {

TEST(MpiRowExchange, ExactRowsAndSums) {
  const auto world = make_mpi_communicator();
  for (std::uint64_t seed = 1; seed <= 5; ++seed) check_row_exchange(*world, cpu_backend(), seed);
}

}  // namespace
}  // namespace scone
