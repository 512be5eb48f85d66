// Input: attributes and datasets, of which a token shard's HDF5 file is made. (The HDF5 library's
// own parsing of hostile files is not ours to harden.)
#include <vector>

#include "data/hdf5_file.h"
#include "data/token_corpus.h"
#include "fuzz_input.h"
#include "parallel/error.h"

namespace {

void write_shard(const std::filesystem::path& path, scone::FuzzInput& input) {
  scone::Hdf5File file = scone::Hdf5File::create(path);
  const auto tokens = input.take<std::uint8_t>() % 64;
  const auto documents = input.take<std::uint8_t>() % 16;
  const auto types = input.take<std::uint8_t>();
  const auto missing = input.take<std::uint8_t>();  // often out of range: nothing is missing
  int number = 0;
  const auto integer = [&](const char* name, std::int64_t likely) {
    const std::int64_t value = input.mostly(likely);
    if (++number != missing) file.set_attribute(name, value);
  };
  file.set_attribute("format", missing == 100 ? "scone-fgrams" : "scone-tokens");
  integer("format_version", 1);
  integer("vocabulary_size", 256);
  integer("end_of_document", -1);
  integer("tokens", tokens);
  integer("documents", documents);
  integer("text_bytes", 100);
  if (++number != missing) file.set_attribute("tokenizer_fingerprint", "0123456789abcdef");
  if (++number != missing) file.set_attribute("checksum", "0123456789abcdef");
  std::vector<std::uint64_t> values(64);
  for (auto& value : values) value = input.take<std::uint8_t>();
  const hid_t kinds[] = {H5T_NATIVE_UINT16, H5T_NATIVE_UINT16, H5T_NATIVE_UINT16, H5T_NATIVE_UINT32,
                         H5T_NATIVE_UINT8,  H5T_NATIVE_FLOAT,  H5T_STD_U16BE,     H5T_NATIVE_INT64};
  std::vector<std::int64_t> shape = {input.mostly(tokens) % 65};
  if (shape[0] < 0) shape[0] = 0;
  if (types & 0x80) shape.push_back(1);
  if (types & 0x40) shape.clear();
  if (++number != missing) {
    file.write("tokens", kinds[types % 8], shape, values.data());
  }
  std::vector<std::int64_t> offsets(static_cast<std::size_t>(documents) + 1);
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    offsets[i] = input.mostly(i == static_cast<std::size_t>(documents)
                                  ? tokens
                                  : static_cast<std::int64_t>(i) * tokens / (documents + 1));
  }
  if (++number != missing) {
    file.write("document_offsets", H5T_NATIVE_INT64, {static_cast<std::int64_t>(offsets.size())},
               offsets.data());
  }
  file.close();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  scone::FuzzInput input(data, size);
  const scone::NamedFile named;
  write_shard(named.path(), input);
  try {
    const scone::TokenCorpus corpus({named.path()});
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(corpus.tokens()));
    corpus.read(0, tokens);
    for (std::int64_t i = 0; i < corpus.documents(); ++i) {
      const auto range = corpus.document(i);
      if (range.begin < 0 || range.end < range.begin || range.end > corpus.tokens()) {
        __builtin_trap();
      }
    }
    for (std::int64_t i = 0; i < corpus.tokens(); ++i) {
      const auto range = corpus.document_of(i);
      if (range.begin > i || range.end <= i) __builtin_trap();
    }
  } catch (const scone::InputError&) {
  }
  return 0;
}
