#pragma once

#include <nccl.h>

/// NCCL between the threads of this process, for tests. A call waits until its stream has come to
/// it and the other ranks are there, and is done when it returns; but it says that it is in
/// progress, and is so for some looks. Ranks that call different things get ncclInvalidUsage.
namespace fake_nccl {

/// All communicators that there are have this error from now on.
void fail_all(ncclResult_t error);
/// How many were aborted and destroyed so far.
int aborted();
int destroyed();

}  // namespace fake_nccl
