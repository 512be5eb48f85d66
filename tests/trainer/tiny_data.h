#pragma once

#include <cstdint>
#include <string>

#include "data/shard_writer.h"
#include "trainer/run_config.h"

namespace scone {

/// Everything a small run reads: shards of random documents over 256 byte tokens, a byte-level
/// tokenizer, and the f-gram vocabulary counted on the shards. The same content in every object.
class TinyData {
 public:
  /// special_tokens: beyond the 256 bytes, for vocabularies that no power of two divides.
  explicit TinyData(int special_tokens = 0);
  /// A run of width 16 on it, in the scratch folder: batches of 8 sequences of 32 tokens.
  /// fgram_layers 0: a baseline.
  RunConfig run(const std::string& name, std::int64_t fgram_layers) const;
  const TemporaryFolder& folder() const { return folder_; }

 private:
  TemporaryFolder folder_;
};

}  // namespace scone
