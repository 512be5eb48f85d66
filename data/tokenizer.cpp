#include "data/tokenizer.h"

#include <fmt/format.h>

#include <fstream>
#include <iterator>
#include <system_error>

#include "data/byte_bpe_tokenizer.h"
#include "data/sentencepiece_tokenizer.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

constexpr const char* kMend =
    "give a Hugging Face tokenizer.json, a SentencePiece tokenizer.model, or a folder that holds "
    "one";

fs::path tokenizer_in(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error)) {
    throw InputError(fmt::format("{}: no such tokenizer; {}", path.string(), kMend));
  }
  if (!fs::is_directory(path, error)) return path;
  for (const char* name : {"tokenizer.json", "tokenizer.model"}) {
    if (fs::exists(path / name, error)) return path / name;
  }
  throw InputError(
      fmt::format("{}: expected tokenizer.json or tokenizer.model in this folder, "
                  "found neither; {}",
                  path.string(), kMend));
}

std::string read_all(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  if (!stream.is_open() || stream.bad()) {
    throw InputError(
        fmt::format("{}: the tokenizer cannot be read; check its permissions", file.string()));
  }
  if (bytes.empty())
    throw InputError(fmt::format("{}: the file is empty; {}", file.string(), kMend));
  return bytes;
}

}  // namespace

std::string Tokenizer::decode(const std::vector<std::int32_t>& ids) const {
  std::string text;
  for (const std::int32_t id : ids) text += token_bytes(id);
  return text;
}

std::unique_ptr<Tokenizer> load_tokenizer(const fs::path& path) {
  const fs::path file = tokenizer_in(path);
  const std::string bytes = read_all(file);
  const std::size_t first = bytes.find_first_not_of(" \t\r\n");
  if (file.extension() == ".json" || (first != std::string::npos && bytes[first] == '{')) {
    return std::make_unique<ByteBpeTokenizer>(file, bytes);
  }
  return std::make_unique<SentencePieceTokenizer>(file, bytes);
}

}  // namespace scone
