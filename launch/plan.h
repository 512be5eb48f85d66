#pragma once

#include "launch/command.h"

namespace scone {

void add_plan(CLI::App& app, Action& action);

}  // namespace scone
