#include "data/document_encoder.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "character_tokenizer.h"
#include "parallel/error.h"

namespace scone {
namespace {

std::vector<EncodedDocument> encode(const Tokenizer& tokenizer, int threads,
                                    const std::vector<std::string>& texts) {
  std::vector<EncodedDocument> encoded;
  std::size_t next = 0;
  encode_documents(
      tokenizer, threads,
      [&](std::string& document) {
        if (next == texts.size()) return false;
        document = texts[next++];
        return true;
      },
      [&](EncodedDocument&& document) { encoded.push_back(std::move(document)); });
  return encoded;
}

TEST(DocumentEncoder, KeepsTheOrderOnAnyNumberOfThreads) {
  std::vector<std::string> texts;
  for (int i = 0; i < 300; ++i) {
    // Groups of a few documents, the first of them the slowest.
    texts.push_back((i % 10 == 0 ? "slow " : "quick ") + std::to_string(i) +
                    std::string(60'000, 'x'));
  }
  const CharacterTokenizer tokenizer;
  for (const int threads : {1, 4}) {
    const auto encoded = encode(tokenizer, threads, texts);
    ASSERT_EQ(encoded.size(), texts.size());
    for (std::size_t i = 0; i < texts.size(); ++i) {
      std::vector<std::int32_t> ids = encoded[i].tokens;
      ASSERT_EQ(ids.back(), 0);
      ASSERT_EQ(tokenizer.decode(ids), texts[i]);
      EXPECT_EQ(encoded[i].text_bytes, static_cast<std::int64_t>(texts[i].size()));
      EXPECT_EQ(encoded[i].text_hash, XXH3_64bits(texts[i].data(), texts[i].size()));
    }
  }
}

TEST(DocumentEncoder, KeepsIllFormedBytes) {
  const CharacterTokenizer tokenizer;
  const std::string text = "\xFF a\xC3\xA9\xE2\x82 b\x80";
  const auto encoded = encode(tokenizer, 1, {text});
  ASSERT_EQ(encoded.size(), 1u);
  EXPECT_EQ(tokenizer.decode(encoded[0].tokens), text);
  EXPECT_THROW(encode(CharacterTokenizer(false), 2, {"a", text, "b"}), InputError);
}

TEST(DocumentEncoder, PassesExceptionsOn) {
  std::vector<std::string> texts(50, std::string(100'000, 'x'));
  texts[20] = "throw";
  const CharacterTokenizer tokenizer;
  EXPECT_THROW(encode(tokenizer, 3, texts), std::runtime_error);
  int calls = 0;
  const auto forever = [&](std::string& document) {
    if (++calls == 40) throw InputError("from the source");
    document.assign(100'000, 'x');
    return true;
  };
  EXPECT_THROW(encode_documents(tokenizer, 3, forever, [](EncodedDocument&&) {}), InputError);
  calls = 0;
  EXPECT_THROW(encode_documents(
                   tokenizer, 3,
                   [&](std::string& document) {
                     document.assign(1'000'000, 'x');
                     return ++calls < 200;
                   },
                   [](EncodedDocument&&) { throw InputError("from the sink"); }),
               InputError);
  EXPECT_LT(calls, 200);  // text in flight is bounded
}

using Sides = std::map<std::uint64_t, ValidationSplit::Side>;

Sides split(double fraction, const std::vector<std::uint64_t>& hashes) {
  Sides sides;
  ValidationSplit validation_split(
      fraction, [&](ValidationSplit::Side side, const EncodedDocument& document) {
        EXPECT_TRUE(sides.emplace(document.text_hash, side).second) << "handed out twice";
      });
  for (const std::uint64_t hash : hashes) validation_split.add({{1}, 1, hash});
  validation_split.finish();
  EXPECT_EQ(sides.size(), hashes.size());
  return sides;
}

std::vector<std::uint64_t> in_validation(const Sides& sides) {
  std::vector<std::uint64_t> hashes;
  for (const auto& [hash, side] : sides) {
    if (side == ValidationSplit::Side::validation) hashes.push_back(hash);
  }
  return hashes;
}

TEST(ValidationSplit, GoesByHashAndFillsBothSides) {
  using Hashes = std::vector<std::uint64_t>;
  constexpr std::uint64_t half = std::uint64_t{1} << 63;
  EXPECT_EQ(in_validation(split(0.5, {half, half - 4096, half + 9, 5})), (Hashes{5, half - 4096}));
  EXPECT_EQ(in_validation(split(0.5, {3, 1, 2, half + 1})), (Hashes{1, 2, 3}));
  // All on one side: the nearest changes sides.
  EXPECT_EQ(in_validation(split(0.001, {half + 5, half + 1, half + 3})), (Hashes{half + 1}));
  EXPECT_EQ(in_validation(split(0.5, {1, 3, 2})), (Hashes{1, 2}));
  // A single document is for training, and fraction 0 has no validation.
  EXPECT_EQ(in_validation(split(0.9, {1})), Hashes{});
  EXPECT_EQ(in_validation(split(0, {0, 1, half})), Hashes{});
  for (const double fraction : {-0.1, 1.0, 1.5, std::nan("")}) {
    EXPECT_THROW(ValidationSplit(fraction, nullptr), InputError);
  }
}

TEST(ValidationSplit, TakesAboutTheFraction) {
  std::vector<std::uint64_t> hashes;
  for (std::uint64_t i = 0; i < 10'000; ++i) hashes.push_back(XXH3_64bits(&i, sizeof(i)));
  const double share = static_cast<double>(in_validation(split(0.1, hashes)).size()) / 10'000;
  EXPECT_NEAR(share, 0.1, 5 * 0.003);  // five standard deviations, sqrt(0.1 x 0.9 / 10,000)
}

}  // namespace
}  // namespace scone
