#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "checkpoint/checkpoint.h"
#include "data/fgram_vocabulary.h"
#include "model/model_config.h"
#include "model/parameter.h"
#include "temporary_folder.h"

namespace scone {

/// Writes folder/tokenizer.json, byte-level BPE of the 256 bytes without merges and some special
/// tokens after them, and returns its path.
std::filesystem::path write_byte_tokenizer(const std::filesystem::path& folder,
                                           int special_tokens = 0);

/// What a training run leaves, as small as it can be: a byte-level tokenizer of 256 tokens, an
/// f-gram vocabulary of 2-, 3- and 4-grams of which some share roots and prefixes, and a checkpoint
/// of random parameters, width 16.
struct TinyRun {
  TinyRun(const std::filesystem::path& folder, bool baseline = false);
  std::filesystem::path folder;
  std::filesystem::path vocabulary_path;
  std::filesystem::path checkpoint;
  std::string tokenizer_fingerprint;
  ModelConfig config;
  ParameterSet main_parameters;
  ParameterSet fgram_parameters;
};

/// An f-gram vocabulary of random 2-grams over `tokens` tokens and random extensions of them.
FgramVocabulary random_vocabulary(std::int64_t size, std::int32_t tokens, int max_length,
                                  const std::string& tokenizer_fingerprint);

/// Turns the bits of one byte of a file.
void flip_byte(const std::filesystem::path& path, std::int64_t offset);
std::string read_bytes(const std::filesystem::path& path);

}  // namespace scone
