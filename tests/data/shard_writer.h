#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "data/fgram_vocabulary.h"
#include "data/fgram_vocabulary_builder.h"
#include "temporary_folder.h"

namespace scone {

using Documents = std::vector<std::vector<std::int32_t>>;

/// Writes one token shard with the documents, as `scone tokenize` would.
void write_shard(const std::filesystem::path& path, const Documents& documents,
                 std::int64_t vocabulary_size, const std::string& tokenizer_fingerprint = "0123");

/// Random documents of 0..longest tokens below vocabulary_size, skewed to low ids, so that n-grams
/// repeat and tie.
Documents random_documents(std::uint64_t seed, int documents, int longest, int vocabulary_size);

/// The vocabulary that the options make of the corpus. Collective; ranks are threads or processes
/// of one machine.
FgramVocabulary build_vocabulary(Communicator& communicator, const TokenCorpus& corpus,
                                 const FgramBuildOptions& options);

/// The file's bytes.
std::string bytes_of_file(const std::filesystem::path& path);

}  // namespace scone
