#pragma once

#include "launch/command.h"

namespace scone {

/// `scone bench bake`: f-grams a second of the bake, of each f-gram by itself padded to K, and of
/// a peer.
void add_bench_bake(CLI::App& bench, Action& action);

}  // namespace scone
