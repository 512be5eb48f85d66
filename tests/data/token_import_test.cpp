#include "data/token_import.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "character_tokenizer.h"
#include "parallel/error.h"
#include "shard_writer.h"

namespace scone {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

template <class... Values>
std::string bytes_of(Values... values) {
  std::string bytes;
  const auto add = [&](auto value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
  };
  (add(values), ...);
  return bytes;
}

template <class Token>
std::string tokens_as(const std::vector<std::int32_t>& tokens) {
  std::string bytes;
  for (const std::int32_t token : tokens) bytes += bytes_of(static_cast<Token>(token));
  return bytes;
}

class TokenImportTest : public testing::Test {
 protected:
  std::filesystem::path write(const std::string& name, const std::string& content) const {
    std::ofstream(folder_ / name, std::ios::binary) << content;
    return folder_ / name;
  }
  std::filesystem::path write_llm_c(const std::string& name,
                                    const std::vector<std::int32_t>& tokens,
                                    std::int32_t magic = 20240520, std::int32_t version = 1,
                                    std::int32_t missing = 0) const {
    const std::int32_t values[] = {magic, version,
                                   static_cast<std::int32_t>(tokens.size()) + missing};
    std::string header(1024, '\0');
    std::memcpy(header.data(), values, sizeof values);
    return write(name, header + (magic == 20240801 ? tokens_as<std::uint32_t>(tokens)
                                                   : tokens_as<std::uint16_t>(tokens)));
  }
  /// An index of sequences of these lengths, of which each document takes so many.
  static std::string megatron_index(const std::vector<std::int32_t>& lengths,
                                    const std::vector<std::int64_t>& sequences_of_documents,
                                    std::uint8_t code = 8, std::int64_t width = 2) {
    std::string lengths_bytes, offsets, marks = bytes_of(std::int64_t{0});
    std::int64_t offset = 0, mark = 0;
    for (const std::int32_t length : lengths) {
      lengths_bytes += bytes_of(length);
      offsets += bytes_of(offset);
      offset += length * width;
    }
    for (const std::int64_t sequences : sequences_of_documents)
      marks += bytes_of(mark += sequences);
    return std::string("MMIDIDX\0\0", 9) + bytes_of(std::uint64_t{1}, code) +
           bytes_of(std::uint64_t{lengths.size()},
                    std::uint64_t{sequences_of_documents.size() + 1}) +
           lengths_bytes + offsets + marks;
  }
  /// The documents' tokens, and, of each, that text and hash are those of the encoded text.
  std::vector<std::vector<std::int32_t>> read(const std::vector<std::filesystem::path>& inputs,
                                              const TokenImportOptions& options,
                                              std::int64_t piece_tokens = 1 << 20) const {
    const TokenFilePieces pieces(inputs, options, tokenizer_, piece_tokens);
    std::vector<std::vector<std::int32_t>> documents;
    const DocumentTextEncoder encoder(tokenizer_);
    std::int64_t counted = 0;
    for (std::int64_t p = 0; p < pieces.count(); ++p) {
      counted += pieces
                     .make(p,
                           [&](EncodedDocument&& document) {
                             documents.push_back(document.tokens);
                             const EncodedDocument again =
                                 encoder.encode(tokenizer_.decode(document.tokens));
                             EXPECT_EQ(document.text_bytes, again.text_bytes);
                             EXPECT_EQ(document.text_hash, again.text_hash);
                             EXPECT_EQ(document.tokens, again.tokens);
                           })
                     .documents;
    }
    EXPECT_EQ(counted, static_cast<std::int64_t>(documents.size()));
    return documents;
  }
  std::string error_of(const std::vector<std::filesystem::path>& inputs,
                       const TokenImportOptions& options) const {
    try {
      read(inputs, options);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no InputError";
  }
  std::string megatron_error(const std::string& index, const std::string& bin) const {
    write("bad.bin", bin);
    write("bad.idx", index);
    return error_of({folder_ / "bad"}, {.format = TokenFormat::megatron});
  }

  TemporaryFolder folder_;
  CharacterTokenizer tokenizer_;  // 257 tokens, 0 ends a document
};

TEST_F(TokenImportTest, ReadsLlmCOfBothKinds) {
  // A separator stands before each document, and a document goes on in the next file.
  const auto a = write_llm_c("a.bin", {0, 10, 11, 0, 12, 13});
  const auto b = write_llm_c("b.bin", {14, 0, 0, 15}, 20240801, 7);
  const std::vector<std::vector<std::int32_t>> expected = {{10, 11, 0}, {12, 13, 14, 0}, {15, 0}};
  for (const std::int64_t piece : {1, 2, 3, 100})
    EXPECT_EQ(read({a, b}, {.format = TokenFormat::llm_c}, piece), expected) << piece;
  EXPECT_EQ(read({folder_.path()}, {.format = TokenFormat::llm_c}), expected);
}

TEST_F(TokenImportTest, ReadsNanoGptOfBothWidthsAndAnySeparator) {
  const std::vector<std::int32_t> tokens = {10, 11, 0, 12, 256, 13, 0};
  const auto narrow = write("narrow.bin", tokens_as<std::uint16_t>(tokens));
  const auto wide = write("wide.bin", tokens_as<std::uint32_t>(tokens));
  const std::vector<std::vector<std::int32_t>> expected = {{10, 11, 0}, {12, 256, 13, 0}};
  EXPECT_EQ(read({narrow}, {.format = TokenFormat::nanogpt}), expected);
  EXPECT_EQ(read({wide}, {.format = TokenFormat::nanogpt, .token_bits = 32}), expected);
  const auto other = write("other.bin", tokens_as<std::uint16_t>({5, 256, 6, 7}));
  const TokenImportOptions separated = {.format = TokenFormat::nanogpt, .separator = 256};
  EXPECT_THAT(read({other}, separated), ElementsAre(ElementsAre(5, 0), ElementsAre(6, 7, 0)));
  const TokenImportOptions one = {.format = TokenFormat::nanogpt, .separator = -1};
  EXPECT_THAT(read({other}, one), ElementsAre(ElementsAre(5, 256, 6, 7, 0)));
}

TEST_F(TokenImportTest, ReadsMegatronByItsIndex) {
  // Documents of one, two and no sequences; the second has its end of document.
  const std::vector<std::int32_t> tokens = {10, 11, 12, 13, 14, 0};
  for (const bool modes : {false, true}) {
    write("m.bin", tokens_as<std::uint16_t>(tokens));
    write("m.idx", megatron_index({2, 3, 1}, {1, 2, 0}) + std::string(modes ? 3 : 0, '\0'));
    for (const char* name : {"m", "m.bin", "m.idx", "."})
      EXPECT_THAT(read({folder_ / name}, {.format = TokenFormat::megatron}, 2),
                  ElementsAre(ElementsAre(10, 11, 0), ElementsAre(12, 13, 14, 0)))
          << name;
  }
  write("m.bin", tokens_as<std::int32_t>(tokens));
  write("m.idx", megatron_index({6}, {1}, 4, 4));
  EXPECT_THAT(read({folder_ / "m"}, {.format = TokenFormat::megatron}),
              ElementsAre(ElementsAre(10, 11, 12, 13, 14, 0)));
}

TEST_F(TokenImportTest, AnyCutGivesTheSameDocuments) {
  std::vector<std::int32_t> tokens;
  for (const auto& document : random_documents(9, 200, 30, 250)) {
    for (const std::int32_t token : document) tokens.push_back(token + 1);
    tokens.push_back(0);
  }
  const auto half = tokens.begin() + static_cast<std::ptrdiff_t>(tokens.size() / 2);
  const auto a = write_llm_c("a.bin", {tokens.begin(), half});
  const auto b = write_llm_c("b.bin", {half, tokens.end()});
  const auto whole = read({a, b}, {.format = TokenFormat::llm_c});
  EXPECT_GT(whole.size(), 150u);
  for (const std::int64_t piece : {1, 7, 64, 1000})
    EXPECT_EQ(read({a, b}, {.format = TokenFormat::llm_c}, piece), whole);
}

TEST_F(TokenImportTest, NamesWhatIsWrongWithTheFile) {
  const TokenImportOptions llm_c = {.format = TokenFormat::llm_c};
  const TokenImportOptions nanogpt = {.format = TokenFormat::nanogpt};
  EXPECT_THAT(error_of({folder_ / "none.bin"}, llm_c), HasSubstr("none.bin: no such"));
  EXPECT_THAT(error_of({folder_.path()}, llm_c), HasSubstr("found none"));
  EXPECT_THAT(error_of({write("short.bin", "abc")}, llm_c), HasSubstr("found 3 bytes"));
  EXPECT_THAT(error_of({write_llm_c("magic.bin", {1, 2}, 20240522)}, llm_c),
              AllOf(HasSubstr("20240520"), HasSubstr("found 20240522")));
  EXPECT_THAT(error_of({write_llm_c("version.bin", {1, 2}, 20240520, 2)}, llm_c),
              HasSubstr("expected version 1"));
  EXPECT_THAT(error_of({write_llm_c("cut.bin", {1, 2}, 20240520, 1, 5)}, llm_c),
              AllOf(HasSubstr("says 7 tokens of 2 bytes"), HasSubstr("4 bytes follow")));
  EXPECT_THAT(error_of({write_llm_c("id.bin", {1, 2, 257})}, llm_c),
              AllOf(HasSubstr("id.bin: token 2 is 257"), HasSubstr("257 tokens")));
  EXPECT_THAT(error_of({write("odd.bin", "abc")}, nanogpt), HasSubstr("3 bytes are no whole"));
  EXPECT_THAT(error_of({write("empty.bin", "")}, nanogpt), HasSubstr("found none"));
  // 32 bits read as 16: the upper halves are ids too, so only a large id shows it.
  EXPECT_THAT(error_of({write("wide.bin", tokens_as<std::uint32_t>({300}))}, nanogpt),
              HasSubstr("--token-bits"));
  EXPECT_THAT(error_of({folder_ / "id.bin"}, {.format = TokenFormat::llm_c, .separator = 257}),
              HasSubstr("--document-separator"));
}

TEST_F(TokenImportTest, SaysHowAnIndexDoesNotFit) {
  const std::string bin = tokens_as<std::uint16_t>({10, 11, 12, 13, 14});
  const std::string good = megatron_index({2, 3}, {1, 1});
  ASSERT_EQ(megatron_error(good, bin), "no InputError");
  EXPECT_THAT(megatron_error(good, bin.substr(0, 8)),
              AllOf(HasSubstr("sequence 1 of 2 ends at byte 10"), HasSubstr("has 8 bytes")));
  EXPECT_THAT(megatron_error(good, bin + "ab"),
              AllOf(HasSubstr("end at byte 10"), HasSubstr("has 12 bytes")));
  EXPECT_THAT(megatron_error(good.substr(0, good.size() - 1), bin), HasSubstr("cut or damaged"));
  EXPECT_THAT(megatron_error(good.substr(0, 20), bin), HasSubstr("20 bytes are fewer"));
  EXPECT_THAT(megatron_error("x" + good.substr(1), bin), HasSubstr("MMIDIDX"));
  EXPECT_THAT(megatron_error(megatron_index({2, 3}, {1, 1}, 7), bin), HasSubstr("type 7"));
  EXPECT_THAT(megatron_error(megatron_index({2, 3}, {1, 1}, 8, 4), bin),
              HasSubstr("sequence 1 begins at byte 8, but the ones before it end at byte 4"));
  EXPECT_THAT(megatron_error(megatron_index({2, -1}, {1, 1}), bin), HasSubstr("has -1 tokens"));
  EXPECT_THAT(megatron_error(megatron_index({2, 3}, {1, 2}), bin), HasSubstr("marks"));
  EXPECT_THAT(megatron_error(megatron_index({2, 3}, {3, -1}), bin), HasSubstr("marks"));
  std::string version = good;
  version[9] = 2;
  EXPECT_THAT(megatron_error(version, bin), HasSubstr("version is 2"));
  std::string huge = good;
  std::memset(huge.data() + 18, 0x7F, 8);
  EXPECT_THAT(megatron_error(huge, bin), HasSubstr("cut or damaged"));
  std::filesystem::remove(folder_ / "bad.idx");
  EXPECT_THAT(error_of({folder_ / "bad"}, {.format = TokenFormat::megatron}), HasSubstr("bad.idx"));
}

TEST_F(TokenImportTest, LargeFilesHave64BitPositions) {
  // 2^32 + 1000 tokens, all but the last ones 0: separators, between which nothing stands.
  const std::int64_t tokens = (std::int64_t{1} << 32) + 1000;
  const auto path = write("large.bin", "");
  std::filesystem::resize_file(path, static_cast<std::uintmax_t>(2 * tokens));
  {
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(2 * (tokens - 3));
    file << tokens_as<std::uint16_t>({10, 11, 12});
  }
  const TokenFilePieces pieces({path}, {.format = TokenFormat::nanogpt}, tokenizer_);
  const std::int64_t last = pieces.count() - 1;
  EXPECT_EQ(last, (tokens - 1) / TokenFilePieces::default_tokens);
  std::vector<std::vector<std::int32_t>> documents;
  pieces.make(last, [&](EncodedDocument&& document) { documents.push_back(document.tokens); });
  EXPECT_THAT(documents, ElementsAre(ElementsAre(10, 11, 12, 0)));
}

}  // namespace
}  // namespace scone
