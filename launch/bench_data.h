#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>

#include "launch/command.h"

namespace scone {

// Parts of `scone bench data`. Each prints its table and returns it as JSON. Ways that are compared
// run in turns; rates are medians of the rounds.

/// Batches from page cache: windows and whole batches of a corpus (a folder of token shards),
/// beside a flat file of the same tokens that is read through mmap in the manner of llm.c. Works on
/// rank 0 alone.
nlohmann::json bench_data_reading(CommandContext& context, const std::filesystem::path& corpus,
                                  int rounds = 5);

/// Other libraries to tokenize with.
struct TokenizerPeers {
  std::filesystem::path packages;  // made by launch/tokenizer_peers.sh; empty: none
  std::filesystem::path script;    // launch/tokenizer_peers.mjs
};

/// Tokenizing on one thread, beside other libraries, and with the threads of this rank: the first
/// 50 MB of documents of `text` (JSONL or text), each library with its cache empty at first; says
/// whether the ids are the same. Works on rank 0 alone. Throws InputError where a peer cannot run.
nlohmann::json bench_data_tokenizing(CommandContext& context, const std::filesystem::path& text,
                                     const std::filesystem::path& tokenizer,
                                     const TokenizerPeers& peers = {}, int rounds = 5);

}  // namespace scone
