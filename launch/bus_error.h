#pragma once

#include <string>

namespace scone {

/// From now on a bus error, which is how the failed read of a mapped file (a shard, a vocabulary, a
/// table) ends a program, is told on stderr with the file and the place in it, after `prefix`,
/// before it takes the course that it had. Called once, after MPI has set its own handler.
void tell_of_bus_errors(const std::string& prefix);

}  // namespace scone
