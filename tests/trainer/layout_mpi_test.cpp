#include <gtest/gtest.h>

#include "layout_checks.h"

namespace scone {
namespace {

TEST(Layout, RanksAgreeWithOneRank) {
  const auto world = make_mpi_communicator();
  check_against_one_rank(*world, 2);
  check_against_one_rank(*world, 0);
}

}  // namespace
}  // namespace scone
