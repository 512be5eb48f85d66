#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "data/fgram_vocabulary.h"
#include "data/token_corpus.h"
#include "parallel/communicator.h"

namespace scone {

/// Where the annotation of a shard lies: beside it, SHARD.matches.
std::filesystem::path annotation_path(const std::filesystem::path& shard);

/// Writes, beside each shard of the corpus, the length of the longest match at each of its
/// positions, documents whole, one byte each. Collective: ranks take shards, threads (OpenMP)
/// documents. The bytes depend on shard and vocabulary alone. Throws InputError where writing
/// fails, or the tokenizers differ.
void write_match_annotations(Communicator& communicator, const TokenCorpus& corpus,
                             const FgramVocabulary& vocabulary);

/// What an annotation's file says, its checksum verified. Throws InputError: damaged or foreign.
struct AnnotationInfo {
  std::int64_t tokens = 0, fgrams_size = 0, fgrams_max_length = 0;
  std::string fgrams_fingerprint, shard_checksum;
};
AnnotationInfo verify_annotation(const std::filesystem::path& path);

/// Longest matches of a corpus, from the annotations of its shards where they are this vocabulary's
/// (its size and max_length included) and of these shards, by looking all up where not. The matches
/// are the same. Safe from several threads.
class MatchAnnotations {
 public:
  /// Both must outlive this. Throws InputError: an annotation that is damaged.
  MatchAnnotations(const TokenCorpus& corpus, const FgramMatcher& matcher);
  ~MatchAnnotations();

  std::int64_t annotated_tokens() const { return annotated_tokens_; }
  /// As FgramMatcher::match, for the tokens [first, first + tokens.size()) of the corpus, which
  /// lie in one document. Throws InputError where an annotation does not fit the vocabulary.
  void match(std::int64_t first, std::span<const std::int32_t> tokens,
             std::span<std::int64_t> ids) const;

 private:
  struct Shard;
  const FgramMatcher& matcher_;
  std::vector<Shard> shards_;  // in the order of the corpus
  std::int64_t annotated_tokens_ = 0;
};

}  // namespace scone
