#include "trainer/built_with.h"

namespace scone {

bool built_with_cuda() {
#ifdef SCONE_HAS_CUDA
  return true;
#else
  return false;
#endif
}

bool built_with_nccl() {
#ifdef SCONE_HAS_NCCL
  return true;
#else
  return false;
#endif
}

}  // namespace scone
