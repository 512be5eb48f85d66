#pragma once

namespace scone {

// What this build has, whatever the machine has.
bool built_with_cuda();
bool built_with_nccl();

}  // namespace scone
