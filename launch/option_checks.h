#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>

namespace scone {

/// Of an option: refuses what is no whole number of at least `least`.
CLI::Validator at_least(std::int64_t least);

}  // namespace scone
