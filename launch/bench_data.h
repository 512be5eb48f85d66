#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>

#include "launch/command.h"

namespace scone {

// Parts of `scone bench data`. Each prints its table and returns it as JSON. Ways that are compared
// run in turns, five rounds; rates are medians.

/// Batches from page cache: windows and whole batches of a corpus (a folder of token shards),
/// beside a flat file of the same tokens that is read through mmap in the manner of llm.c. Works on
/// rank 0 alone.
nlohmann::json bench_data_reading(CommandContext& context, const std::filesystem::path& corpus);

/// Tokenizing on one thread: all documents of `text` (JSONL or text) with `tokenizer`, up to 50 MB
/// of them; and with the threads of this machine. Works on rank 0 alone.
nlohmann::json bench_data_tokenizing(CommandContext& context, const std::filesystem::path& text,
                                     const std::filesystem::path& tokenizer);

}  // namespace scone
