#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "data/fgram_file.h"
#include "data/fgram_selection.h"
#include "data/ngram_counter.h"
#include "data/spill_folder.h"
#include "parallel/communicator.h"

namespace scone {

/// Calls take(row) on rank 0 for each selected f-gram in the order of the ids. Collective; rank 0
/// collects and sorts them, in `memory_bytes` and the spill folder. token_vocabulary_size: of the
/// rows' references.
void rank_fgrams(Communicator& communicator, const std::vector<NgramLevelFile>& levels, int bits,
                 const FgramSelection& selection, std::int64_t token_vocabulary_size,
                 std::int64_t memory_bytes, SpillFolder& spill,
                 const std::function<void(const FgramRow&)>& take);

}  // namespace scone
