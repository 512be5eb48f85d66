#include "tiny_run.h"

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "data/tokenizer.h"
#include "model/fgram_model.h"
#include "model/main_model.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

/// The byte-level alphabet of GPT-2: printable Latin-1 bytes stand for themselves, the rest for 256
/// and up.
nlohmann::json byte_vocabulary() {
  nlohmann::json vocabulary = nlohmann::json::object();
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const int code = printable ? byte : next++;
    std::string utf8;
    if (code < 0x80) {
      utf8 += static_cast<char>(code);
    } else {
      utf8 += static_cast<char>(0xC0 | (code >> 6));
      utf8 += static_cast<char>(0x80 | (code & 0x3F));
    }
    vocabulary[utf8] = byte;
  }
  return vocabulary;
}

}  // namespace

fs::path write_byte_tokenizer(const fs::path& folder, int special_tokens) {
  const nlohmann::json pre_tokenizer = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}};
  const nlohmann::json model = {
      {"type", "BPE"}, {"vocab", byte_vocabulary()}, {"merges", nlohmann::json::array()}};
  nlohmann::json added = nlohmann::json::array();
  for (int i = 0; i < special_tokens; ++i)
    added.push_back({{"id", 256 + i},
                     {"content", "<special" + std::to_string(i) + ">"},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  const nlohmann::json json = {{"version", "1.0"},
                               {"added_tokens", added},
                               {"normalizer", nullptr},
                               {"pre_tokenizer", pre_tokenizer},
                               {"decoder", {{"type", "ByteLevel"}}},
                               {"model", model}};
  std::ofstream(folder / "tokenizer.json") << json.dump();
  return folder / "tokenizer.json";
}

FgramVocabulary random_vocabulary(std::int64_t size, std::int32_t tokens, int max_length,
                                  const std::string& tokenizer_fingerprint) {
  std::mt19937 random(7);
  const auto below = [&](std::int64_t n) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n));
  };
  FgramVocabularyContents contents;
  contents.tokenizer_fingerprint = tokenizer_fingerprint;
  contents.corpus_fingerprint = "0123456789abcdef";
  contents.token_vocabulary_size = 256;
  contents.corpus_tokens = 1000000;
  contents.min_count = 5;
  contents.max_length = max_length;
  std::set<std::pair<std::int64_t, std::int64_t>> seen;
  while (static_cast<std::int64_t>(contents.prefix.size()) < size) {
    const auto known = static_cast<std::int64_t>(contents.prefix.size());
    std::int64_t prefix = -1 - below(tokens);
    int length = 2;
    if (known > 4 && below(2) == 1) {
      prefix = below(known);
      length = contents.length[static_cast<std::size_t>(prefix)] + 1;
    }
    const std::int64_t last = below(tokens);
    if (length > max_length || !seen.insert({prefix, last}).second) continue;
    contents.prefix.push_back(prefix);
    contents.last_token.push_back(static_cast<std::uint32_t>(last));
    contents.length.push_back(static_cast<std::uint8_t>(length));
    contents.count.push_back(static_cast<std::uint64_t>(size - known + 5));
  }
  return FgramVocabulary(std::move(contents));
}

TinyRun::TinyRun(const fs::path& where, bool baseline) : folder(where) {
  const fs::path tokenizer_path = write_byte_tokenizer(folder);
  tokenizer_fingerprint = load_tokenizer(tokenizer_path)->fingerprint();
  config.vocabulary_size = 256;
  config.main = {.width = 16, .layers = 2, .heads = 2, .ffw = 32, .context = 32};
  config.fgram = config.main;
  config.fgram.layers = baseline ? 0 : 2;
  config.fgram.context = 4;
  config.fgram_chunk_nodes = 64;
  main_parameters = ParameterSet(main_parameter_specs(config), Device::cpu);
  main_parameters.initialise(11, cpu_backend());
  if (!baseline) {
    fgram_parameters = ParameterSet(fgram_parameter_specs(config), Device::cpu);
    fgram_parameters.initialise(12, cpu_backend());
  }
  CheckpointManifest manifest;
  manifest.step = 100;
  manifest.tokens = 12345;
  manifest.model = config;
  manifest.run = {{"sequence_length", 16}, {"attention_across_documents", false}};
  manifest.data = {{"tokenizer", tokenizer_path.string()},
                   {"tokenizer_fingerprint", tokenizer_fingerprint}};
  if (!baseline) {
    vocabulary_path = folder / "fgrams.h5";
    const FgramVocabulary vocabulary = random_vocabulary(600, 40, 4, tokenizer_fingerprint);
    vocabulary.save(vocabulary_path);
    manifest.fgrams = {{"vocabulary", vocabulary_path.string()},
                       {"size", vocabulary.size()},
                       {"max_length", vocabulary.max_length()},
                       {"fingerprint", vocabulary.fingerprint()}};
  }
  std::vector<NamedTensor> tensors;
  for (const ParameterSet* set : {&main_parameters, &fgram_parameters}) {
    for (std::size_t i = 0; i < set->size(); ++i) {
      tensors.push_back({"parameters/" + set->spec(i).name, set->value(i)});
    }
  }
  checkpoint = write_checkpoint(folder / "checkpoints", manifest, tensors, 0);
}

void flip_byte(const fs::path& path, std::int64_t offset) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(offset);
  const int byte = file.get();
  file.seekp(offset);
  file.put(static_cast<char>(byte ^ 0xFF));
}

std::string read_bytes(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace scone
