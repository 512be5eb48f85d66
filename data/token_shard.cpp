#include "data/token_shard.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <memory>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "data/hdf5_file.h"
#include "parallel/error.h"

namespace scone {
namespace {

constexpr std::int64_t format_version = 1;

std::string space_left(const std::filesystem::path& folder) {
  std::error_code error;
  const auto space = std::filesystem::space(folder, error);
  if (error) return "unknown";
  return fmt::format("{:.1f} MB", static_cast<double>(space.available) / 1e6);
}

}  // namespace

std::string shard_checksum(std::span<const std::byte> tokens, std::span<const std::byte> offsets) {
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                              XXH3_freeState);
  XXH3_64bits_reset(state.get());
  XXH3_64bits_update(state.get(), tokens.data(), tokens.size());
  XXH3_64bits_update(state.get(), offsets.data(), offsets.size());
  return fmt::format("{:016x}", XXH3_64bits_digest(state.get()));
}

TokenShardWriter::TokenShardWriter(std::filesystem::path folder, ShardTokenizer tokenizer,
                                   std::int64_t shard_tokens, std::int64_t first_shard)
    : folder_(std::move(folder)),
      tokenizer_(std::move(tokenizer)),
      shard_tokens_(shard_tokens),
      first_shard_(first_shard) {
  // A file that could not be closed on a full disk makes the library's own exit handler crash;
  // this program closes its files by itself. No effect once the library is in use.
  H5dont_atexit();
  if (shard_tokens_ < 1) throw std::invalid_argument("shard_tokens must be at least 1");
}

void TokenShardWriter::add(std::span<const std::int32_t> tokens, std::int64_t text_bytes) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  if (offsets_.size() > 1 && count > shard_tokens_ - offsets_.back()) write_shard();
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= tokenizer_.vocabulary_size) {
      throw std::logic_error(fmt::format("token id {} of a tokenizer with a vocabulary of {}",
                                         token, tokenizer_.vocabulary_size));
    }
  }
  if (tokenizer_.vocabulary_size <= 65536) {
    short_tokens_.insert(short_tokens_.end(), tokens.begin(), tokens.end());
  } else {
    long_tokens_.insert(long_tokens_.end(), tokens.begin(), tokens.end());
  }
  offsets_.push_back(offsets_.back() + count);
  shard_text_bytes_ += text_bytes;
  ++totals_.documents;
  totals_.tokens += count;
  totals_.text_bytes += text_bytes;
}

void TokenShardWriter::finish() {
  if (offsets_.size() > 1) write_shard();
}

void TokenShardWriter::write_shard() {
  const bool is_short = tokenizer_.vocabulary_size <= 65536;
  const void* data = is_short ? static_cast<const void*>(short_tokens_.data())
                              : static_cast<const void*>(long_tokens_.data());
  const auto token_bytes =
      is_short ? std::as_bytes(std::span(short_tokens_)) : std::as_bytes(std::span(long_tokens_));
  const std::int64_t tokens = offsets_.back();
  const auto offsets = static_cast<std::int64_t>(offsets_.size());
  const std::filesystem::path path =
      folder_ / fmt::format("shard-{:05}.h5", first_shard_ + totals_.shards);
  try {
    Hdf5File file = Hdf5File::create(path);
    file.set_attribute("format", kTokenShardFormat);
    file.set_attribute("format_version", format_version);
    file.set_attribute("tokenizer_fingerprint", tokenizer_.fingerprint);
    file.set_attribute("vocabulary_size", tokenizer_.vocabulary_size);
    file.set_attribute("end_of_document", std::int64_t{tokenizer_.end_of_document});
    file.set_attribute("tokens", tokens);
    file.set_attribute("documents", offsets - 1);
    file.set_attribute("text_bytes", shard_text_bytes_);
    file.set_attribute("checksum", shard_checksum(token_bytes, std::as_bytes(std::span(offsets_))));
    file.write("/tokens", is_short ? H5T_NATIVE_UINT16 : H5T_NATIVE_UINT32, {tokens}, data);
    file.write("/document_offsets", H5T_NATIVE_INT64, {offsets}, offsets_.data());
    file.close();
  } catch (const InputError&) {
    throw;
  } catch (const std::runtime_error& error) {
    throw InputError(fmt::format("{} (space left in {}: {}); free some, or give another --output",
                                 error.what(), folder_.string(), space_left(folder_)));
  }
  ++totals_.shards;
  short_tokens_.clear();
  long_tokens_.clear();
  offsets_.assign(1, 0);
  shard_text_bytes_ = 0;
}

}  // namespace scone
