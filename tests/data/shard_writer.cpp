#include "shard_writer.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>

#include "data/hdf5_file.h"

namespace scone {

void write_shard(const std::filesystem::path& path, const Documents& documents,
                 std::int64_t vocabulary_size, const std::string& tokenizer_fingerprint) {
  std::vector<std::uint16_t> tokens;
  std::vector<std::int64_t> offsets{0};
  for (const auto& document : documents) {
    for (const std::int32_t token : document) tokens.push_back(static_cast<std::uint16_t>(token));
    offsets.push_back(static_cast<std::int64_t>(tokens.size()));
  }
  XXH3_state_t* state = XXH3_createState();
  XXH3_64bits_reset(state);
  XXH3_64bits_update(state, tokens.data(), tokens.size() * sizeof(tokens[0]));
  XXH3_64bits_update(state, offsets.data(), offsets.size() * sizeof(offsets[0]));
  const std::string checksum = fmt::format("{:016x}", XXH3_64bits_digest(state));
  XXH3_freeState(state);
  Hdf5File file = Hdf5File::create(path);
  file.set_attribute("format", "scone-tokens");
  file.set_attribute("format_version", std::int64_t{1});
  file.set_attribute("tokenizer_fingerprint", tokenizer_fingerprint);
  file.set_attribute("vocabulary_size", vocabulary_size);
  file.set_attribute("end_of_document", std::int64_t{-1});
  file.set_attribute("tokens", static_cast<std::int64_t>(tokens.size()));
  file.set_attribute("documents", static_cast<std::int64_t>(documents.size()));
  file.set_attribute("text_bytes", static_cast<std::int64_t>(tokens.size()) * 4);
  file.set_attribute("checksum", checksum);
  file.write("/tokens", H5T_NATIVE_UINT16, {static_cast<std::int64_t>(tokens.size())},
             tokens.data());
  file.write("/document_offsets", H5T_NATIVE_INT64, {static_cast<std::int64_t>(offsets.size())},
             offsets.data());
  file.close();
}

Documents random_documents(std::uint64_t seed, int documents, int longest, int vocabulary_size) {
  std::mt19937_64 random(seed);
  std::uniform_int_distribution<int> length(0, longest);
  std::uniform_real_distribution<double> uniform(0, 1);
  Documents result(static_cast<std::size_t>(documents));
  for (auto& document : result) {
    document.resize(static_cast<std::size_t>(length(random)));
    for (std::int32_t& token : document) {
      const double u = uniform(random);
      token = static_cast<std::int32_t>(u * u * u * vocabulary_size);
    }
  }
  return result;
}

std::string bytes_of_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(file), {}};
}

FgramVocabulary build_vocabulary(Communicator& communicator, const TokenCorpus& corpus,
                                 const FgramBuildOptions& options) {
  const TemporaryFolder folder;
  const std::filesystem::path path =
      communicator.broadcast_string((folder / "fgrams.h5").string(), 0);
  build_fgram_vocabulary(communicator, corpus, options, path);
  FgramVocabulary vocabulary(path);  // mapped: it outlives the file
  communicator.barrier();
  return vocabulary;
}

}  // namespace scone
