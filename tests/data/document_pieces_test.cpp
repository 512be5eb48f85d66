#include "data/document_pieces.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "character_tokenizer.h"
#include "data/document_spill.h"
#include "parallel/agreed_errors.h"
#include "parallel/error.h"
#include "shard_writer.h"

namespace scone {
namespace {

using ::testing::HasSubstr;

/// Documents of JSON lines, long and short, plain files, and compressed ones.
class DocumentPiecesTest : public testing::Test {
 protected:
  DocumentPiecesTest() {
    std::string lines;
    for (int d = 0; d < 300; ++d) {
      lines += nlohmann::json{{"text", text(d)}}.dump() + (d % 3 == 0 ? "\r\n" : "\n");
      if (d % 50 == 0) lines += "\n";  // blank lines are no documents
    }
    write("a.jsonl", lines + "{\"text\": \"the last line, without its end\"}");
    for (int d = 0; d < 40; ++d) write("b/" + std::to_string(100 + d) + ".txt", text(1000 + d));
    const gzFile file = gzopen((folder_ / "c.jsonl.gz").c_str(), "wb");
    gzwrite(file, lines.data(), static_cast<unsigned>(lines.size()));
    gzclose(file);
    write("d.txt", std::string(5000, 'd'));
    write("e.jsonl", "{\"text\": \"\"}\n{\"text\": \"after an empty one\"}\n");
  }
  void write(const std::string& name, const std::string& content) const {
    std::filesystem::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name, std::ios::binary) << content;
  }
  static std::string text(int d) {
    std::string result = "document " + std::to_string(d) + " ";
    for (int i = 0; i < d * 37 % 90; ++i) result += static_cast<char>('a' + (d + i) % 26);
    return d % 7 == 0 ? result + "\n\"naïve\" 🙂" : result;
  }
  TextSource source() const { return TextSource({folder_.path()}, InvalidUtf8::replace); }

  TemporaryFolder folder_;
  CharacterTokenizer tokenizer_;
};

TEST_F(DocumentPiecesTest, PiecesHoldTheDocumentsOfTheWhole) {
  TextSource whole = source();
  std::vector<std::string> expected;
  for (std::string text; whole.next(text);) expected.push_back(text);
  ASSERT_EQ(expected.size(), 301u + 40 + 300 + 1 + 1);
  for (const std::int64_t piece_bytes : {1, 50, 700, 4000, 1 << 20}) {
    std::vector<std::string> found;
    TextCounts counts;
    const auto pieces = whole.pieces(piece_bytes);
    for (const TextPiece& piece : pieces) {
      TextSource part = whole.piece(piece);
      for (std::string text; part.next(text);) found.push_back(text);
      counts.empty_documents += part.counts().empty_documents;
      counts.text_bytes += part.counts().text_bytes;
    }
    EXPECT_EQ(found, expected) << piece_bytes;
    EXPECT_EQ(counts.text_bytes, whole.counts().text_bytes);
    EXPECT_EQ(counts.empty_documents, whole.counts().empty_documents);
    EXPECT_EQ(pieces.size() == 1, piece_bytes == 1 << 20);
  }
}

TEST_F(DocumentPiecesTest, HandsOutInOrderWhateverTheThreads) {
  const TextSource text = source();
  std::vector<std::vector<std::int32_t>> expected;
  for (const int threads : {1, 3}) {
    const TextPieces pieces(text, tokenizer_, 600);
    std::vector<std::vector<std::int32_t>> found;
    std::vector<std::int64_t> done;
    const TextCounts counts = encode_pieces(
        pieces, 0, pieces.count(), threads,
        [&](EncodedDocument&& document) { found.push_back(document.tokens); },
        [&](std::int64_t piece) { done.push_back(piece); });
    if (expected.empty()) expected = found;
    EXPECT_EQ(found, expected);
    EXPECT_EQ(counts.documents, static_cast<std::int64_t>(found.size()));
    EXPECT_EQ(static_cast<std::int64_t>(done.size()), pieces.count());
    EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
  }
  EXPECT_EQ(expected.size(), 643u);
}

TEST_F(DocumentPiecesTest, NamesTheLineWhereverTheCutIs) {
  std::string lines;
  for (int d = 0; d < 200; ++d)
    lines += d == 150 ? "{\"txt\": 1}\n" : nlohmann::json{{"text", text(d)}}.dump() + "\n";
  write("bad/bad.jsonl", lines);
  const TextSource text({folder_ / "bad"}, InvalidUtf8::replace);
  for (const std::int64_t piece_bytes : {10, 300, 1 << 20}) {
    const TextPieces pieces(text, tokenizer_, piece_bytes);
    try {
      encode_pieces(
          pieces, 0, pieces.count(), 2, [](EncodedDocument&&) {}, [](std::int64_t) {});
      ADD_FAILURE() << "no InputError";
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), HasSubstr("bad.jsonl:151: "));
    }
  }
}

/// name -> bytes of the shards in two folders.
std::map<std::string, std::string> shards_in(const std::filesystem::path& folder) {
  std::map<std::string, std::string> shards;
  for (const char* side : {"train", "validation"})
    for (const auto& entry : std::filesystem::directory_iterator(folder / side))
      shards[side + entry.path().filename().string()] = bytes_of_file(entry.path());
  return shards;
}

TEST_F(DocumentPiecesTest, ShardsAreTheSameOverRanks) {
  const TextSource text = source();
  const TextPieces pieces(text, tokenizer_, 500);
  const ShardTokenizer shard_tokenizer{"0", tokenizer_.vocabulary_size(), 0};
  // Of 1e-12 no document would be for validation: one is held back for it.
  for (const double fraction : {0.0, 1e-12, 0.2}) {
    const std::filesystem::path alone = folder_ / "alone";
    std::filesystem::remove_all(alone);
    for (const char* side : {"train", "validation"})
      std::filesystem::create_directories(alone / side);
    TokenShardWriter train(alone / "train", shard_tokenizer, 900);
    TokenShardWriter validation(alone / "validation", shard_tokenizer, 900);
    ValidationSplit split(fraction,
                          [&](ValidationSplit::Side side, const EncodedDocument& document) {
                            (side == ValidationSplit::Side::train ? train : validation)
                                .add(document.tokens, document.text_bytes);
                          });
    encode_pieces(
        pieces, 0, pieces.count(), 2,
        [&](EncodedDocument&& document) { split.add(std::move(document)); }, [](std::int64_t) {});
    split.finish();
    train.finish();
    validation.finish();
    const auto expected = shards_in(alone);
    ASSERT_GT(expected.size(), 20u);
    EXPECT_EQ(validation.totals().documents > 0, fraction > 0);

    for (int ranks = 1; ranks <= 4; ++ranks) {
      const std::filesystem::path together = folder_ / "together";
      std::filesystem::remove_all(together);
      for (const char* name : {"train", "validation", "spill"})
        std::filesystem::create_directories(together / name);
      run_as_threads(ranks, [&](Communicator& world) {
        DocumentSpill spill(together / "spill", shard_tokenizer, world.rank());
        const auto [first, last] = pieces_of_rank(pieces, world.rank(), world.size());
        encode_pieces(
            pieces, first, last, 2, [&](EncodedDocument&& document) { spill.add(document); },
            [](std::int64_t) {});
        spill.close();
        world.barrier();
        const auto sides =
            spill.write_shards(world, fraction, 900, together / "train", together / "validation");
        EXPECT_EQ(sides.train.tokens, train.totals().tokens);
        EXPECT_EQ(sides.validation.documents, validation.totals().documents);
        EXPECT_EQ(sides.train.shards, train.totals().shards);
      });
      EXPECT_TRUE(shards_in(together) == expected) << ranks << " ranks, fraction " << fraction;
      EXPECT_FALSE(std::filesystem::exists(together / "spill"));
    }
  }
}

TEST_F(DocumentPiecesTest, RanksShareThePiecesOut) {
  const TextSource text = source();
  const TextPieces pieces(text, tokenizer_, 500);
  for (int ranks = 1; ranks <= 5; ++ranks) {
    std::int64_t next = 0, most = 0, total = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      const auto [first, last] = pieces_of_rank(pieces, rank, ranks);
      EXPECT_EQ(first, next);
      next = last;
      std::int64_t bytes = 0;
      for (std::int64_t p = first; p < last; ++p) bytes += pieces.bytes(p);
      most = std::max(most, bytes);
      total += bytes;
    }
    EXPECT_EQ(next, pieces.count());
    EXPECT_LE(most, total / ranks + 5000 + 500) << "the longest piece has 5,000 bytes";
  }
}

TEST(AgreedErrors, AllRanksThrowTheErrorOfTheLowest) {
  run_as_threads(3, [](Communicator& world) {
    run_agreed(world, [] {});
    const auto fail = [&](bool bad_input) {
      run_agreed(world, [&] {
        const std::string message = "rank " + std::to_string(world.rank());
        if (world.rank() == 0) return;
        if (bad_input) throw InputError(message);
        throw std::runtime_error(message);
      });
    };
    try {
      fail(true);
      ADD_FAILURE() << "no error";
    } catch (const InputError& error) {
      EXPECT_STREQ(error.what(), "rank 1");
    }
    EXPECT_THROW(fail(false), std::runtime_error);
  });
}

}  // namespace
}  // namespace scone
