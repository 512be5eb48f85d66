#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <vector>

#include "data/document_encoder.h"
#include "data/token_shard.h"
#include "parallel/communicator.h"

namespace scone {

/// What several ranks encoded, on its way into shards: each rank writes its documents to files of
/// its own in one folder that all ranks see, the root divides them between training and validation
/// and into shards in the order of ranks, as one rank would, and each rank then writes some of the
/// shards. Takes as much of the disk as the shards do; memory for one shard a rank.
class DocumentSpill {
 public:
  /// folder: exists. Throws InputError where its files cannot be created.
  DocumentSpill(const std::filesystem::path& folder, const ShardTokenizer& tokenizer, int rank);

  /// Throws InputError where the disk is full.
  void add(const EncodedDocument& document);
  /// Ends writing. Throws InputError where the disk is full.
  void close();

  struct Sides {
    ShardTotals train, validation;
  };
  /// Collective: every rank has closed its spill. Writes the shards into the two folders, which
  /// exist, and removes the spilled files. Returns the totals of all ranks. Throws InputError on
  /// all ranks where one fails.
  Sides write_shards(Communicator& world, double validation_fraction, std::int64_t shard_tokens,
                     const std::filesystem::path& train, const std::filesystem::path& validation);

 private:
  std::filesystem::path tokens_path(int rank) const;
  std::filesystem::path index_path(int rank) const;
  std::filesystem::path plan_path(bool validation, std::int64_t shard) const;
  [[noreturn]] void disk_full(const std::filesystem::path& path) const;
  /// Writes a plan of each shard; returns how many there are of each side.
  std::vector<std::int64_t> plan_shards(int ranks, double validation_fraction,
                                        std::int64_t shard_tokens) const;
  void write_shard(bool validation, std::int64_t shard, const std::filesystem::path& folder,
                   ShardTotals& totals) const;

  std::filesystem::path folder_;
  ShardTokenizer tokenizer_;
  int rank_;
  bool is_short_;
  std::ofstream tokens_, index_;
  std::vector<std::uint16_t> narrow_;
};

}  // namespace scone
