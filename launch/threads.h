#pragma once

#include "parallel/communicator.h"

namespace scone {

/// Threads for this rank unless it is told otherwise: OMP_NUM_THREADS where it is set, else the
/// cores this process may run on, shared by the ranks of its host that may run on the same ones,
/// and at most what a Slurm job gives a task. Collective over `world`.
int default_threads(Communicator& world);

}  // namespace scone
