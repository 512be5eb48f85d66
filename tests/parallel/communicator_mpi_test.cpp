#include <gtest/gtest.h>

#include "collective_checks.h"

namespace scone {
namespace {

TEST(MpiCommunicator, CollectivesAndExchange) {
  const auto world = make_mpi_communicator();
  check_collectives(*world);
  check_fgram_exchange(*world);
}

}  // namespace
}  // namespace scone
