#include "data/document_encoder.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <deque>
#include <future>
#include <memory>
#include <utility>

#include "data/ordered_tasks.h"
#include "data/utf8.h"
#include "parallel/error.h"

namespace scone {
namespace {

constexpr std::size_t group_bytes = 256 << 10;     // of text, encoded as one task
constexpr std::size_t in_flight_bytes = 64 << 20;  // of text, in all tasks

using Group = std::vector<std::string>;
using EncodedGroup = std::vector<EncodedDocument>;

}  // namespace

DocumentTextEncoder::DocumentTextEncoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

EncodedDocument DocumentTextEncoder::encode(std::string_view text) const {
  EncodedDocument document;
  encode_text(text, document.tokens);
  if (const std::int32_t end = tokenizer_.end_of_document(); end >= 0)
    document.tokens.push_back(end);
  document.text_bytes = static_cast<std::int64_t>(text.size());
  document.text_hash = XXH3_64bits(text.data(), text.size());
  return document;
}

void DocumentTextEncoder::encode_text(std::string_view text, std::vector<std::int32_t>& ids) const {
  IllFormed found = find_ill_formed_utf8(text);
  std::size_t done = 0;
  while (found.offset != std::string_view::npos) {
    if (found.offset > done) tokenizer_.encode(text.substr(done, found.offset - done), ids);
    done = found.offset + found.length;
    for (const char byte : text.substr(found.offset, found.length)) {
      ids.push_back(byte_token(static_cast<unsigned char>(byte)));
    }
    found = find_ill_formed_utf8(text, done);
  }
  if (done < text.size()) tokenizer_.encode(text.substr(done), ids);
}

std::int32_t DocumentTextEncoder::byte_token(unsigned char byte) const {
  std::call_once(once_, [this] {
    byte_tokens_.fill(-1);
    for (std::int64_t id = tokenizer_.vocabulary_size() - 1; id >= 0; --id) {
      const std::string bytes = tokenizer_.token_bytes(static_cast<std::int32_t>(id));
      if (bytes.size() != 1) continue;
      byte_tokens_[static_cast<unsigned char>(bytes[0])] = static_cast<std::int32_t>(id);
    }
  });
  if (byte_tokens_[byte] >= 0) return byte_tokens_[byte];
  throw InputError(
      fmt::format("{}: the tokenizer has no token for the byte 0x{:02X}, so invalid UTF-8 cannot "
                  "be kept; use --invalid-utf8 replace",
                  tokenizer_.file().string(), static_cast<unsigned>(byte)));
}

void encode_documents(const Tokenizer& tokenizer, int threads,
                      const std::function<bool(std::string&)>& next_document,
                      const std::function<void(EncodedDocument&&)>& sink) {
  struct InFlight {
    std::future<EncodedGroup> result;
    std::size_t bytes;
  };
  const DocumentTextEncoder encoder(tokenizer);
  auto encode_group = [&](const Group& group) {
    EncodedGroup encoded;
    for (const std::string& text : group) encoded.push_back(encoder.encode(text));
    return encoded;
  };
  std::deque<InFlight> in_flight;
  std::size_t bytes_in_flight = 0;
  OrderedTasks<EncodedGroup> pool(threads);  // goes before what its tasks use
  auto hand_out_oldest = [&] {
    EncodedGroup encoded = in_flight.front().result.get();
    bytes_in_flight -= in_flight.front().bytes;
    in_flight.pop_front();
    for (EncodedDocument& document : encoded) sink(std::move(document));
  };

  Group group;
  std::size_t bytes = 0;
  auto submit_group = [&] {
    auto shared = std::make_shared<Group>(std::exchange(group, {}));
    in_flight.push_back(
        {pool.submit([shared, &encode_group] { return encode_group(*shared); }), bytes});
    bytes_in_flight += std::exchange(bytes, 0);
  };
  for (std::string document; next_document(document);) {
    bytes += document.size();
    group.push_back(std::move(document));
    if (bytes >= group_bytes) submit_group();
    while (bytes_in_flight > in_flight_bytes) hand_out_oldest();
  }
  if (!group.empty()) submit_group();
  while (!in_flight.empty()) hand_out_oldest();
}

void check_validation_fraction(double fraction) {
  if (fraction >= 0 && fraction < 1) return;
  throw InputError(fmt::format(
      "--validation-fraction: expected 0 <= fraction < 1, found {}; give one such as 0.005",
      fraction));
}

}  // namespace scone
