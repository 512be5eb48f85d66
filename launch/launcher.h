#pragma once

#include <string>

namespace scone {

/// What started this process as a rank and by what the ranks find one another, from the
/// environment: "mpirun (PMIx 4.2.2)", "srun --mpi=pmix (PMIx)", "none: a single rank". To be
/// called before MPI starts, which makes the environment of a single rank look like a launcher's.
std::string describe_launcher();

}  // namespace scone
