// Input: the contents of an f-gram vocabulary, given to the class as they are and as an HDF5 file
// with attributes that may not fit. (The HDF5 library's own parsing of hostile files is not ours to
// harden.)
#include <vector>

#include "data/fgram_vocabulary.h"
#include "data/hdf5_file.h"
#include "fuzz_input.h"
#include "parallel/error.h"

namespace {

void use(const scone::FgramVocabulary& vocabulary) {
  for (std::int64_t id = 0; id < vocabulary.size(); ++id) {
    const auto tokens = vocabulary.tokens(id);
    if (static_cast<int>(tokens.size()) != vocabulary.length(id)) __builtin_trap();
    if (tokens.front() != vocabulary.first_token(id)) __builtin_trap();
    std::vector<std::int64_t> ids(tokens.size());
    vocabulary.match(tokens, ids);
    const bool found = vocabulary.length(id) <= vocabulary.max_length();
    if (found && ids.back() != id) __builtin_trap();
  }
  (void)vocabulary.fingerprint();
}

void write_file(const std::filesystem::path& path, const scone::FgramVocabularyContents& contents,
                scone::FuzzInput& input) {
  scone::Hdf5File file = scone::Hdf5File::create(path);
  const auto size = static_cast<std::int64_t>(contents.prefix.size());
  const auto missing = input.take<std::uint8_t>();  // often out of range: nothing is missing
  int number = 0;
  const auto integer = [&](const char* name, std::int64_t likely) {
    const std::int64_t value = input.mostly(likely);
    if (++number != missing) file.set_attribute(name, value);
  };
  file.set_attribute("format", missing == 100 ? "scone-tokens" : "scone-fgrams");
  integer("format_version", 3);
  integer("size", size);
  integer("max_length", contents.max_length);
  integer("vocabulary_size", contents.token_vocabulary_size);
  integer("corpus_tokens", contents.corpus_tokens);
  integer("min_count", contents.min_count);
  for (const char* name : {"tokenizer_fingerprint", "corpus_fingerprint", "checksum"}) {
    if (++number != missing) file.set_attribute(name, "0123456789abcdef");
  }
  const auto dataset = [&](const char* name, hid_t type, const void* data) {
    const hid_t stored = input.mostly(0) == 0 ? type : H5T_NATIVE_UINT8;
    if (++number != missing) file.write(name, stored, {size}, data);
  };
  std::vector<std::uint32_t> prefix;
  std::vector<std::uint16_t> last_token;
  for (const std::int64_t stored : contents.prefix) {
    const auto above = static_cast<std::uint64_t>(contents.token_vocabulary_size);
    prefix.push_back(
        static_cast<std::uint32_t>(static_cast<std::uint64_t>(stored) + (stored < 0 ? 0 : above)));
    if (stored < 0) prefix.back() = ~prefix.back();
  }
  for (const std::uint32_t token : contents.last_token)
    last_token.push_back(static_cast<std::uint16_t>(token));
  dataset("/prefix", H5T_NATIVE_UINT32, prefix.data());
  dataset("/last_token", H5T_NATIVE_UINT16, last_token.data());
  dataset("/length", H5T_NATIVE_UINT8, contents.length.data());
  dataset("/count", H5T_NATIVE_UINT64, contents.count.data());
  file.close();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  scone::FuzzInput input(data, size);
  scone::FgramVocabularyContents contents;
  contents.token_vocabulary_size = input.mostly(16);
  contents.corpus_tokens = 1000;
  contents.min_count = 5;
  contents.max_length = static_cast<int>(input.mostly(5));
  const auto entries = static_cast<std::size_t>(input.take<std::uint8_t>() % 32);
  const auto limit = static_cast<int>(input.mostly(0) % 256);
  for (std::size_t id = 0; id < entries; ++id) {
    const auto prefix = input.mostly(input.take<std::int8_t>() % 17);
    const bool known = prefix >= 0 && prefix < static_cast<std::int64_t>(id);
    const int above = known ? contents.length[static_cast<std::size_t>(prefix)] : 1;
    contents.prefix.push_back(prefix);
    contents.last_token.push_back(
        static_cast<std::uint32_t>(input.mostly(input.take<std::uint8_t>() % 16)));
    contents.length.push_back(static_cast<std::uint8_t>(input.mostly(above + 1)));
    contents.count.push_back(
        static_cast<std::uint64_t>(input.mostly(static_cast<std::int64_t>(100 - id))));
  }
  const scone::NamedFile named;
  write_file(named.path(), contents, input);
  // All f-grams (then the checksum is verified), and all but one.
  for (const std::int64_t wanted : {std::int64_t{0}, static_cast<std::int64_t>(entries) - 1}) {
    try {
      use(scone::FgramVocabulary(named.path(), wanted, limit));
    } catch (const scone::InputError&) {
    }
  }
  try {
    const scone::FgramVocabulary vocabulary(std::move(contents));
    use(vocabulary);
  } catch (const scone::InputError&) {
  }
  return 0;
}
