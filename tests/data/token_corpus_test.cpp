#include "data/token_corpus.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "data/hdf5_file.h"
#include "data/shard_list.h"
#include "data/token_shard.h"
#include "parallel/error.h"
#include "shard_writer.h"

namespace scone {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

/// Writes the documents with the writer of `scone tokenize`; each counts 10 bytes of text.
ShardTotals write_shards(const std::filesystem::path& folder, const Documents& documents,
                         std::int64_t vocabulary_size, std::int64_t shard_tokens) {
  std::filesystem::create_directories(folder);
  TokenShardWriter writer(folder, {"00ff00ff00ff00ff", vocabulary_size, 1}, shard_tokens);
  for (const auto& document : documents) writer.add(document, 10);
  writer.finish();
  return writer.totals();
}

std::vector<std::int32_t> joined(const Documents& documents) {
  std::vector<std::int32_t> all;
  for (const auto& document : documents) all.insert(all.end(), document.begin(), document.end());
  return all;
}

Documents non_empty(Documents documents) {
  std::erase_if(documents, [](const auto& document) { return document.empty(); });
  return documents;
}

std::string error_of(const std::vector<std::filesystem::path>& paths) {
  try {
    const TokenCorpus corpus(paths);
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(corpus.tokens()));
    corpus.read(0, tokens);
  } catch (const InputError& error) {
    return error.what();
  }
  return "no InputError";
}

class TokenCorpusOfVocabulary : public ::testing::TestWithParam<std::int64_t> {};

TEST_P(TokenCorpusOfVocabulary, ReadsWhatTheWriterWrote) {
  const TemporaryFolder folder;
  const auto vocabulary = static_cast<int>(GetParam());
  Documents documents = non_empty(random_documents(1, 300, 50, vocabulary));
  documents[5] = {0, vocabulary - 1};         // both ends of the vocabulary
  documents[7].assign(1200, vocabulary / 2);  // longer than a shard
  const std::vector<std::int32_t> expected = joined(documents);
  const ShardTotals totals = write_shards(folder.path(), documents, vocabulary, 1000);
  EXPECT_EQ(totals.tokens, static_cast<std::int64_t>(expected.size()));
  EXPECT_EQ(totals.documents, static_cast<std::int64_t>(documents.size()));
  EXPECT_GE(totals.shards, totals.tokens / 1200);

  const TokenCorpus corpus({folder.path()});
  ASSERT_EQ(corpus.tokens(), totals.tokens);
  ASSERT_EQ(corpus.documents(), totals.documents);
  EXPECT_EQ(static_cast<std::int64_t>(corpus.shards().size()), totals.shards);
  EXPECT_EQ(corpus.vocabulary_size(), vocabulary);
  EXPECT_EQ(corpus.tokenizer_fingerprint(), "00ff00ff00ff00ff");
  std::int64_t text_bytes = 0;
  for (const ShardInfo& shard : corpus.shards()) {
    text_bytes += shard.text_bytes;
    EXPECT_EQ(shard.end_of_document, 1);
    EXPECT_TRUE(shard.tokens <= 1000 || shard.documents == 1) << shard.path;
  }
  EXPECT_EQ(text_bytes, 10 * totals.documents);

  std::vector<std::int32_t> read(expected.size());
  corpus.read(0, read);
  EXPECT_EQ(read, expected);
  for (std::int64_t first = 0; first < corpus.tokens(); first += 331) {  // across shards
    std::vector<std::int32_t> piece(
        static_cast<std::size_t>(std::min<std::int64_t>(1500, corpus.tokens() - first)));
    corpus.read(first, piece);
    EXPECT_TRUE(std::equal(piece.begin(), piece.end(), expected.begin() + first)) << first;
  }
  // Windows within shards and across them, to the last one that has a target.
  std::vector<std::int32_t> inputs(700), targets(700);
  for (std::int64_t first = 0; first + 700 < corpus.tokens(); first += 233) {
    corpus.read_window(first, inputs, targets);
    ASSERT_TRUE(std::equal(inputs.begin(), inputs.end(), expected.begin() + first)) << first;
    ASSERT_TRUE(std::equal(targets.begin(), targets.end(), expected.begin() + first + 1)) << first;
    std::vector<std::int64_t> ends, expected_ends;
    corpus.document_ends(first, 700, ends);
    for (std::int64_t at = first; at < first + 700; at = expected_ends.back())
      expected_ends.push_back(corpus.document_of(at).end);
    ASSERT_EQ(ends, expected_ends) << first;
  }
  corpus.read_window(corpus.tokens() - 701, inputs, targets);
  EXPECT_EQ(targets.back(), expected.back());
  EXPECT_THROW(corpus.read_window(corpus.tokens() - 700, inputs, targets), std::out_of_range);

  std::int64_t begin = 0;
  for (std::size_t d = 0; d < documents.size(); ++d) {
    const auto end = begin + static_cast<std::int64_t>(documents[d].size());
    const auto range = corpus.document(static_cast<std::int64_t>(d));
    EXPECT_EQ(range.begin, begin);
    EXPECT_EQ(range.end, end);
    for (const std::int64_t position : {begin, end - 1}) {
      EXPECT_EQ(corpus.document_of(position).begin, begin);
      EXPECT_EQ(corpus.document_of(position).end, end);
    }
    begin = end;
  }
  EXPECT_THROW(corpus.document_of(corpus.tokens()), std::out_of_range);
  EXPECT_THROW(corpus.read(corpus.tokens() - 1, std::span(read).first(2)), std::out_of_range);
  EXPECT_THROW(corpus.read(-1, std::span(read).first(1)), std::out_of_range);
}

INSTANTIATE_TEST_SUITE_P(Widths, TokenCorpusOfVocabulary, ::testing::Values(50, 65536, 65537));

TEST(TokenShardWriter, StoresTheNarrowestTypeContiguously) {
  const TemporaryFolder folder;
  for (const std::int64_t vocabulary : {65536, 65537}) {
    write_shards(folder / "s", {{0, 1, 2}}, vocabulary, 100);
    const Hdf5File file = Hdf5File::open(folder / "s/shard-00000.h5");
    const std::int64_t offset = file.dataset_offset("tokens");
    ASSERT_GT(offset, 0);
    const std::string bytes = bytes_of_file(folder / "s/shard-00000.h5");
    const std::string expected = vocabulary <= 65536 ? std::string("\0\0\1\0\2\0", 6)
                                                     : std::string("\0\0\0\0\1\0\0\0\2\0\0\0", 12);
    EXPECT_EQ(bytes.substr(static_cast<std::size_t>(offset), expected.size()), expected);
  }
}

TEST(TokenShardWriter, SameDocumentsSameBytesAndOtherDocumentsOtherChecksum) {
  const TemporaryFolder folder;
  Documents documents = random_documents(2, 40, 30, 500);
  write_shards(folder / "a", documents, 500, 200);
  write_shards(folder / "b", documents, 500, 200);
  const TokenCorpus a({folder / "a"}), b({folder / "b"});
  ASSERT_GT(a.shards().size(), 1u);
  for (const ShardInfo& shard : a.shards()) {
    const auto name = shard.path.filename().string();
    EXPECT_EQ(bytes_of_file(shard.path), bytes_of_file(folder / "b" / name));
  }
  EXPECT_EQ(a.fingerprint(), b.fingerprint());
  documents[3].push_back(7);
  write_shards(folder / "c", documents, 500, 200);
  EXPECT_NE(a.fingerprint(), TokenCorpus({folder / "c"}).fingerprint());
  // The same tokens, divided otherwise.
  write_shards(folder / "d", {{1, 2, 3}}, 500, 200);
  write_shards(folder / "e", {{1, 2}, {3}}, 500, 200);
  EXPECT_NE(TokenCorpus({folder / "d"}).fingerprint(), TokenCorpus({folder / "e"}).fingerprint());
}

TEST(TokenShardWriter, AgreesWithTheTestsOwnWriter) {
  const TemporaryFolder folder;
  const Documents documents = random_documents(4, 40, 30, 500);
  write_shards(folder / "a", documents, 500, 1 << 20);
  write_shard(folder / "b.h5", documents, 500, "00ff00ff00ff00ff");
  EXPECT_EQ(TokenCorpus({folder / "a"}).fingerprint(),
            TokenCorpus({folder / "b.h5"}).fingerprint());
}

TEST(TokenShardWriter, RefusesWhatCannotBe) {
  const TemporaryFolder folder;
  EXPECT_THROW(TokenShardWriter(folder.path(), {"0", 10, -1}, 0), std::invalid_argument);
  TokenShardWriter writer(folder.path(), {"0", 10, -1}, 100);
  EXPECT_THROW(writer.add(std::vector<std::int32_t>{1, 10}, 1), std::logic_error);
  TokenShardWriter nowhere(folder / "none", {"0", 10, -1}, 100);
  nowhere.add(std::vector<std::int32_t>{1, 2}, 1);
  EXPECT_THROW(nowhere.finish(), InputError);
}

TEST(TokenCorpus, SkipsEmptyDocumentsAndShards) {
  const TemporaryFolder folder;
  write_shard(folder / "a.h5", {{}, {1, 2}, {}, {3}, {}}, 10);
  write_shard(folder / "b.h5", {{}}, 10);
  write_shard(folder / "c.h5", {{4}}, 10);
  const TokenCorpus corpus({folder.path()});
  EXPECT_EQ(corpus.documents(), 3);
  EXPECT_EQ(corpus.document(1).begin, 2);
  EXPECT_EQ(corpus.document_of(3).begin, 3);
  std::vector<std::int64_t> ends;
  corpus.document_ends(1, 3, ends);
  EXPECT_THAT(ends, ElementsAreArray({2, 3, 4}));
  std::vector<std::int32_t> tokens(4);
  corpus.read(0, tokens);
  EXPECT_THAT(tokens, ElementsAreArray({1, 2, 3, 4}));
}

TEST(TokenCorpus, ReadsAheadWhatItIsAskedFor) {
  const TemporaryFolder folder;
  write_shards(folder.path(), {std::vector<std::int32_t>(3'000'000, 5)}, 10, 4'000'000);
  const std::filesystem::path shard = folder / "shard-00000.h5";
  const int descriptor = ::open(shard.c_str(), O_RDONLY);
  ASSERT_GE(descriptor, 0);
  ::fsync(descriptor);
  const TokenCorpus corpus({folder.path()});
  ::posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
  ::close(descriptor);
  const std::int64_t first = 2'000'000, count = 100'000;
  if (corpus.is_cached(first, count)) {
    std::cout << "this file system keeps all pages: only that asking does no harm is tested\n";
  }
  corpus.will_read(first, count);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!corpus.is_cached(first, count) && std::chrono::steady_clock::now() < end)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_TRUE(corpus.is_cached(first, count));
  corpus.will_read(2'999'000, 100'000);  // beyond the end
  EXPECT_TRUE(corpus.is_cached(3'000'000, 5));
}

TEST(TokenCorpus, FindsTheTokenizerBesideOrAboveTheShards) {
  const TemporaryFolder folder;
  write_shards(folder / "train", {{1, 2}}, 10, 100);
  const TokenCorpus corpus({folder / "train"});
  EXPECT_THROW(corpus.tokenizer_path(), InputError);
  std::ofstream(folder / "tokenizer.json") << "{}";
  EXPECT_EQ(corpus.tokenizer_path(), folder / "tokenizer.json");
}

TEST(TokenCorpus, IsSafeFromSeveralThreads) {
  const TemporaryFolder folder;
  const Documents documents = random_documents(5, 500, 60, 1000);
  const std::vector<std::int32_t> expected = joined(documents);
  write_shards(folder.path(), documents, 1000, 3000);
  const TokenCorpus corpus({folder.path()});
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      std::vector<std::int32_t> piece(700);
      for (std::size_t first = t; first + piece.size() <= expected.size(); first += 97) {
        corpus.read(static_cast<std::int64_t>(first), piece);
        wrong[t] += std::memcmp(piece.data(), &expected[first], 700 * sizeof(piece[0])) != 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(wrong, ElementsAreArray({0, 0, 0, 0}));
}

TEST(TokenCorpus, RefusesForeignDamagedAndUnlikeShards) {
  const TemporaryFolder folder;
  EXPECT_THAT(error_of({folder / "none"}), HasSubstr("none"));
  EXPECT_THAT(error_of({folder.path()}), HasSubstr("*.h5"));
  std::ofstream(folder / "text.h5") << "some text, no HDF5";
  EXPECT_THAT(error_of({folder / "text.h5"}), HasSubstr("text.h5"));

  { Hdf5File::create(folder / "foreign.h5").set_attribute("format", "other"); }
  EXPECT_THAT(error_of({folder / "foreign.h5"}), HasSubstr("scone-tokens"));

  write_shards(folder / "a", {{1, 2, 3}, {4}}, 10, 100);
  const std::filesystem::path good = folder / "a/shard-00000.h5";
  const std::string bytes = bytes_of_file(good);
  std::ofstream(folder / "cut.h5", std::ios::binary) << bytes.substr(0, bytes.size() - 3);
  EXPECT_THAT(error_of({folder / "cut.h5"}), HasSubstr("cut.h5"));

  // Changes the four tokens, or the three offsets, where they lie.
  const auto damaged = [&](const char* dataset, std::size_t index, std::size_t width, char byte) {
    const std::int64_t offset = Hdf5File::open(good).dataset_offset(dataset);
    std::string changed = bytes;
    changed[static_cast<std::size_t>(offset) + index * width] = byte;
    std::ofstream(folder / "damaged.h5", std::ios::binary) << changed;
    return error_of({folder / "damaged.h5"});
  };
  EXPECT_THAT(damaged("tokens", 2, 2, 10), HasSubstr("token id 10"));
  {
    const TokenCorpus corpus({folder / "damaged.h5"});
    std::vector<std::int32_t> inputs(2), targets(2);
    EXPECT_NO_THROW(corpus.read_window(0, std::span(inputs).first(1), std::span(targets).first(1)));
    EXPECT_THROW(corpus.read_window(0, inputs, targets), InputError);  // as the last target
    EXPECT_THROW(corpus.read_window(1, inputs, targets), InputError);
  }
  EXPECT_THAT(damaged("document_offsets", 1, 8, 5), HasSubstr("offsets"));
  EXPECT_THAT(damaged("document_offsets", 2, 8, 3), HasSubstr("offsets"));
  EXPECT_THAT(damaged("document_offsets", 0, 8, 1), HasSubstr("offsets"));
  EXPECT_EQ(damaged("tokens", 2, 2, 9), "no InputError");

  write_shard(folder / "other.h5", {{1}}, 10, "1111");
  EXPECT_THAT(error_of({good, folder / "other.h5"}), HasSubstr("1111"));
  write_shard(folder / "bigger.h5", {{1}}, 11, "00ff00ff00ff00ff");
  EXPECT_THAT(error_of({good, folder / "bigger.h5"}), HasSubstr("11 tokens"));
}

class ListedShardsTest : public ::testing::Test {
 protected:
  ListedShardsTest() {
    write_shards(folder_.path(), random_documents(6, 100, 30, 500), 500, 300);
    write_shard_list(folder_.path());
  }
  std::filesystem::path shard(int number) const {
    return folder_ / ("shard-0000" + std::to_string(number) + ".h5");
  }
  /// Changes a token in place, and nothing that the shard says of itself.
  void change_token(int number) const {
    const std::int64_t offset = Hdf5File::open(shard(number)).dataset_offset("tokens");
    std::fstream file(shard(number), std::ios::binary | std::ios::in | std::ios::out);
    file.seekg(offset);
    const int old = file.get();
    file.seekp(offset);
    file.put(static_cast<char>(old ^ 1));
  }

  TemporaryFolder folder_;
};

TEST_F(ListedShardsTest, NamesEachShardThatIsMissingChangedOrNew) {
  ASSERT_GT(TokenCorpus({folder_.path()}).shards().size(), 3u);
  EXPECT_EQ(error_of({folder_.path()}), "no InputError");
  std::filesystem::remove(shard(1));
  change_token(2);
  write_shards(folder_ / "other", {{1, 2, 3}}, 500, 100);
  std::filesystem::rename(folder_ / "other/shard-00000.h5", folder_ / "extra.h5");
  const std::string error = error_of({folder_.path()});
  EXPECT_THAT(error, HasSubstr("shard-00001.h5: missing"));
  EXPECT_THAT(error, HasSubstr("shard-00002.h5: changed"));
  EXPECT_THAT(error, HasSubstr("extra.h5: not among them"));
  EXPECT_THAT(error, ::testing::Not(HasSubstr("shard-00000.h5")));
  EXPECT_THAT(error, HasSubstr("--allow-changed-data"));

  const TokenCorpus allowed({folder_.path()}, ChangedShards::allow);
  EXPECT_EQ(allowed.changes().size(), 3u);
  // A shard by its name is taken as it is.
  EXPECT_EQ(error_of({shard(0), shard(2)}), "no InputError");
}

TEST_F(ListedShardsTest, ACopyIsNoChange) {
  const TemporaryFolder copies;
  const std::filesystem::path copy = copies / "copy";
  std::filesystem::copy(folder_.path(), copy);
  // Newer than the list, so they are hashed again.
  const auto later = std::filesystem::file_time_type::clock::now() + std::chrono::hours(1);
  for (const auto& entry : std::filesystem::directory_iterator(copy))
    if (entry.path().extension() == ".h5") std::filesystem::last_write_time(entry.path(), later);
  EXPECT_EQ(error_of({copy}), "no InputError");
  EXPECT_EQ(TokenCorpus({copy}).fingerprint(), TokenCorpus({folder_.path()}).fingerprint());
}

TEST_F(ListedShardsTest, RefusesADamagedList) {
  std::ofstream(folder_ / kShardListName) << "{\"format\": \"scone-shards\"}";
  EXPECT_THAT(error_of({folder_.path()}), HasSubstr("shards.json"));
}

TEST(ShardChanges, TellsMovedShardsAndAnotherOrder) {
  const std::vector<ListedShard> before = {{"a/0", 5, "x"}, {"a/1", 6, "y"}, {"a/2", 6, "y"}};
  const std::vector<ListedShard> moved = {{"b/0", 5, "x"}, {"b/1", 6, "y"}, {"b/2", 6, "y"}};
  EXPECT_TRUE(shard_changes(before, before).empty());
  EXPECT_TRUE(shard_changes(before, moved).empty());
  EXPECT_THAT(shard_changes(before, {moved[0], moved[1]}),
              ::testing::ElementsAre(HasSubstr("a/2: missing")));
  EXPECT_THAT(shard_changes(before, {before[1], before[0], before[2]}),
              ::testing::ElementsAre(HasSubstr("another order")));
}

TEST(TokenCorpus, NamesEveryShardOfAnotherTokenizer) {
  const TemporaryFolder folder;
  write_shard(folder / "a.h5", {{1}}, 10, "1111");
  write_shard(folder / "b.h5", {{1}}, 10, "2222");
  write_shard(folder / "c.h5", {{1}}, 10, "3333");
  std::ofstream(folder / "d.txt") << "text";
  const std::string error = error_of({folder.path()});
  EXPECT_THAT(error, HasSubstr("b.h5: tokenized with tokenizer 2222"));
  EXPECT_THAT(error, HasSubstr("c.h5: tokenized with tokenizer 3333"));
  for (const char* name : {"e.h5", "f.h5"}) std::ofstream(folder / name) << "no HDF5";
  const std::string broken = error_of({folder.path()});
  EXPECT_THAT(broken, HasSubstr("e.h5"));
  EXPECT_THAT(broken, HasSubstr("f.h5"));
}

}  // namespace
}  // namespace scone
