#include "checkpoint/table/table_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <map>
#include <random>

#include "checkpoint/table/index_layout.h"
#include "parallel/error.h"
#include "tiny_table.h"

namespace scone {
namespace {

using test::TinyFgrams;
using Reference = std::map<std::vector<std::int32_t>, std::int64_t>;

class TableIndexTest : public ::testing::Test {
 protected:
  TemporaryFolder folder_;
  std::filesystem::path path_ = folder_.path() / "index.bin";

  TableIndex write_and_read(const TinyFgrams& fgrams) const {
    fgrams.write(path_);
    return TableIndex(path_);
  }
  std::string message_of_reading() const {
    try {
      const TableIndex index(path_);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no error";
  }
};

Reference reference_of(const TinyFgrams& fgrams) {
  Reference reference;
  for (std::int64_t id = 0; id < fgrams.header.rows; ++id)
    if (fgrams.keys[static_cast<std::size_t>(id)].used) reference[fgrams.tokens(id)] = id;
  return reference;
}

/// N-grams one after another, as find() takes them.
struct Ngrams {
  std::vector<std::int32_t> tokens;
  std::vector<std::int64_t> offsets{0};
  void add(const std::vector<std::int32_t>& ngram) {
    tokens.insert(tokens.end(), ngram.begin(), ngram.end());
    offsets.push_back(std::ssize(tokens));
  }
  std::vector<std::int64_t> find(const TableIndex& index) const {
    std::vector<std::int64_t> ids(offsets.size() - 1, -7);
    index.find(tokens, offsets, ids);
    return ids;
  }
};

/// All keys are found, alone and in batches, and random n-grams only where they are keys.
void expect_as(const Reference& reference, const TinyFgrams& fgrams, const TableIndex& index,
               int others) {
  Ngrams ngrams;
  std::vector<std::int64_t> expected;
  for (const auto& [key, id] : reference) {
    ngrams.add(key);
    expected.push_back(id);
  }
  for (std::size_t i = 0; i < expected.size(); i += 17) {
    const auto begin = static_cast<std::size_t>(ngrams.offsets[i]);
    const auto end = static_cast<std::size_t>(ngrams.offsets[i + 1]);
    ASSERT_EQ(index.find(std::span(ngrams.tokens).subspan(begin, end - begin)), expected[i]);
  }
  std::mt19937_64 random(5);
  const auto vocabulary = static_cast<std::uint64_t>(fgrams.header.token_vocabulary_size);
  for (int i = 0; i < others; ++i) {
    std::vector<std::int32_t> key;
    if (fgrams.header.rows > 0 && i % 2 == 0) {  // near a key: longer, shorter, or one token off
      const auto rows = static_cast<std::uint64_t>(fgrams.header.rows);
      key = fgrams.tokens(static_cast<std::int64_t>(random() % rows));
      if (i % 3 == 0) key.push_back(static_cast<std::int32_t>(random() % vocabulary));
      if (i % 3 == 1) key.erase(key.begin());
      key[random() % key.size()] = static_cast<std::int32_t>(random() % vocabulary);
    } else {
      for (std::uint64_t length = random() % 6; length > 0; --length)
        key.push_back(static_cast<std::int32_t>(random() % (vocabulary + 2)) - 1);
    }
    ngrams.add(key);
    const auto found = reference.find(key);
    expected.push_back(found == reference.end() ? -1 : found->second);
  }
  EXPECT_EQ(ngrams.find(index), expected);
}

void expect_matches(const Reference& reference, const TinyFgrams& fgrams, const TableIndex& index,
                    std::size_t count) {
  std::mt19937_64 random(6);
  const auto vocabulary = static_cast<std::uint64_t>(fgrams.header.token_vocabulary_size);
  std::vector<std::int32_t> tokens;
  while (tokens.size() < count) {
    if (fgrams.header.rows > 0 && random() % 4 != 0) {
      const auto rows = static_cast<std::uint64_t>(fgrams.header.rows);
      const auto some = fgrams.tokens(static_cast<std::int64_t>(random() % rows));
      tokens.insert(tokens.end(), some.begin(), some.end());
    } else if (random() % 16 == 0) {
      tokens.push_back(random() % 2 == 0 ? -1 : static_cast<std::int32_t>(vocabulary));
    } else {
      tokens.push_back(static_cast<std::int32_t>(random() % vocabulary));
    }
  }
  std::vector<std::int64_t> expected_ids(tokens.size(), -1), ids(tokens.size(), -7);
  std::vector<std::uint8_t> expected_lengths(tokens.size(), 0), lengths(tokens.size(), 99);
  for (std::size_t end = 1; end <= tokens.size(); ++end) {
    for (auto length = static_cast<std::size_t>(fgrams.header.max_length); length >= 2; --length) {
      if (length > end) continue;
      const auto last = tokens.begin() + static_cast<std::ptrdiff_t>(end);
      const auto found = reference.find({last - static_cast<std::ptrdiff_t>(length), last});
      if (found == reference.end()) continue;
      expected_ids[end - 1] = found->second;
      expected_lengths[end - 1] = static_cast<std::uint8_t>(length);
      break;
    }
  }
  index.match(tokens, ids, lengths);
  EXPECT_EQ(ids, expected_ids);
  EXPECT_EQ(lengths, expected_lengths);
  std::fill(ids.begin(), ids.end(), -7);
  index.match(tokens, ids);
  EXPECT_EQ(ids, expected_ids);
}

TEST_F(TableIndexTest, AgreesWithAMap) {
  for (const std::int64_t vocabulary : {1, 2, 256, 4096, 50257, 300000}) {
    for (const std::int64_t size : {0, 1, 10, 100000}) {
      SCOPED_TRACE(testing::Message() << vocabulary << " tokens, " << size << " f-grams");
      const TinyFgrams fgrams = test::make_fgrams(vocabulary, size, vocabulary <= 2 ? 12 : 5,
                                                  static_cast<std::uint64_t>(vocabulary + size));
      const TableIndex index = write_and_read(fgrams);
      EXPECT_EQ(index.header().rows, fgrams.header.rows);
      EXPECT_EQ(index.header().fgrams, fgrams.header.fgrams);
      EXPECT_TRUE(vocabulary <= 2 || fgrams.header.rows == size);
      const Reference reference = reference_of(fgrams);
      expect_as(reference, fgrams, index, 60000);
      for (const std::size_t count : {0U, 1U, 2U, 7U, 255U, 256U, 257U, 3000U})
        expect_matches(reference, fgrams, index, count);
    }
  }
}

/// All groups of children in unary, and every number of ids around the sizes of blocks and words.
TEST_F(TableIndexTest, FindsInUnary) {
  std::vector<std::int64_t> sizes{2000, 70000};
  for (const std::int64_t words : {0, 1, 2, 3})
    for (std::int64_t beside = -3; beside <= 3; ++beside) sizes.push_back(64 * words + beside);
  std::erase_if(sizes, [](std::int64_t size) { return size < 0; });
  for (const std::int64_t size : sizes) {
    const TinyFgrams fgrams = test::make_fgrams(30, size, 9, static_cast<std::uint64_t>(size));
    const Reference reference = reference_of(fgrams);
    for (const std::int64_t head : {0, 1, 63, 64, 65}) {
      SCOPED_TRACE(testing::Message() << size << " f-grams, explicit starts for " << head);
      fgrams.write(path_, head);
      const TableIndex index(path_);
      expect_as(reference, fgrams, index, 300);
      expect_matches(reference, fgrams, index, 300);
      const std::vector<TableKey> keys = index.keys();
      EXPECT_TRUE(keys.empty() || keys.back().last_token == fgrams.keys.back().last_token);
    }
  }
}

TEST_F(TableIndexTest, LeavesOutWhatHasNoKey) {
  const TinyFgrams all = test::make_fgrams(1000, 20000, 6, 3);
  for (const int limit : {2, 3, 5}) {
    const TinyFgrams fgrams = test::limit_length(all, limit);
    ASSERT_GT(fgrams.header.unused, 0);
    const TableIndex index = write_and_read(fgrams);
    const Reference reference = reference_of(fgrams);
    EXPECT_EQ(std::ssize(reference), fgrams.header.rows - fgrams.header.unused);
    expect_as(reference, fgrams, index, 20000);
    expect_matches(reference, fgrams, index, 2000);
  }
}

/// Every token behind one, and behind an f-gram of a high id, whose children are kept in unary.
TEST_F(TableIndexTest, FindsAmongManyChildren) {
  constexpr std::int32_t vocabulary = 50257;
  TinyFgrams fgrams = test::make_fgrams(vocabulary, 6000, 3, 9);
  std::erase_if(fgrams.keys,
                [](const TableKey& key) { return key.prefix >= 0 || key.prefix == -8; });
  const std::int64_t high = std::ssize(fgrams.keys) + 5000;
  for (std::int32_t token = 0; token < 5001; ++token) fgrams.keys.push_back({-8, token, true});
  for (std::int32_t token = 5001; token < vocabulary; ++token)
    fgrams.keys.push_back({-8, token, true});
  for (std::int32_t token = 0; token < vocabulary; token += 2)
    fgrams.keys.push_back({high, token, true});
  fgrams.header.rows = std::ssize(fgrams.keys);
  const TableIndex index = write_and_read(fgrams);
  expect_as(reference_of(fgrams), fgrams, index, 20000);
}

/// Children whose scattered tokens lie in clusters, where guesses are far off.
TEST_F(TableIndexTest, FindsAmongUnevenChildren) {
  constexpr std::int32_t vocabulary = 65536;
  TinyFgrams fgrams;
  fgrams.header = {0, 0, 2, vocabulary, "uneven"};
  for (std::int32_t prefix = 0; prefix < 4; ++prefix) {
    for (std::int32_t token = 0; token < vocabulary; ++token) {
      const std::uint32_t scattered = scatter_token(static_cast<std::uint32_t>(token), 16);
      const std::uint32_t place = scattered % (4096U << prefix);
      if (place < 500 || scattered == 65535 || scattered == 40000)
        fgrams.keys.push_back({-1 - prefix, token, true});
    }
  }
  fgrams.header.rows = std::ssize(fgrams.keys);
  const TableIndex index = write_and_read(fgrams);
  const Reference reference = reference_of(fgrams);
  Ngrams ngrams;
  std::vector<std::int64_t> expected;
  for (std::int32_t prefix = 0; prefix < 5; ++prefix) {
    for (std::int32_t token = 0; token < vocabulary; ++token) {
      ngrams.add({prefix, token});
      const auto found = reference.find({prefix, token});
      expected.push_back(found == reference.end() ? -1 : found->second);
    }
  }
  EXPECT_EQ(ngrams.find(index), expected);
}

TEST_F(TableIndexTest, NeverFindsAWrongKey) {
  const TinyFgrams fgrams = test::make_fgrams(4096, 100000, 5, 4);
  const TableIndex index = write_and_read(fgrams);
  const Reference reference = reference_of(fgrams);
  std::mt19937_64 random(8);
  Ngrams ngrams;
  while (ngrams.offsets.size() <= 1000000) {
    auto key = fgrams.tokens(static_cast<std::int64_t>(random() % 100000));
    key[random() % key.size()] = static_cast<std::int32_t>(random() % 4096);
    if (!reference.contains(key)) ngrams.add(key);
  }
  const std::vector<std::int64_t> ids = ngrams.find(index);
  EXPECT_THAT(ids, testing::Each(-1));
}

TEST_F(TableIndexTest, TakesSixBytesAnFgram) {
  const TinyFgrams fgrams = test::make_fgrams(50257, 1000000, 5, 1);
  ASSERT_EQ(fgrams.header.rows, 1000000);
  const TableIndex index = write_and_read(fgrams);
  const double bytes = static_cast<double>(index.memory_bytes()) / 1e6;
  std::printf("%.3f bytes an f-gram\n", bytes);
  EXPECT_LE(bytes, 6.0);
  EXPECT_EQ(static_cast<std::int64_t>(std::filesystem::file_size(path_)), index.memory_bytes());
  Ngrams ngrams;
  std::vector<std::int64_t> expected;
  for (std::int64_t id = 0; id < fgrams.header.rows; id += 3) {
    ngrams.add(fgrams.tokens(id));
    expected.push_back(id);
  }
  EXPECT_EQ(ngrams.find(index), expected);
}

TEST_F(TableIndexTest, GivesItsKeysBack) {
  const TinyFgrams fgrams = test::limit_length(test::make_fgrams(300, 30000, 5, 12), 4);
  const TableIndex index = write_and_read(fgrams);
  const std::vector<TableKey> keys = index.keys();
  ASSERT_EQ(keys.size(), fgrams.keys.size());
  for (std::size_t id = 0; id < keys.size(); ++id) {
    ASSERT_EQ(keys[id].used, fgrams.keys[id].used) << id;
    if (!keys[id].used) continue;
    ASSERT_EQ(keys[id].prefix, fgrams.keys[id].prefix) << id;
    ASSERT_EQ(keys[id].last_token, fgrams.keys[id].last_token) << id;
  }
  // And the bytes depend on them alone.
  const auto other = folder_.path() / "other.bin";
  TableIndex::write(other, index.header(),
                    [&](std::int64_t id) { return keys[static_cast<std::size_t>(id)]; });
  std::ifstream one(path_, std::ios::binary), two(other, std::ios::binary);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(one), {}),
            std::string(std::istreambuf_iterator<char>(two), {}));
}

TEST_F(TableIndexTest, RefusesKeysThatAreNone) {
  const auto message = [&](TinyFgrams fgrams) -> std::string {
    try {
      fgrams.write(path_);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no error";
  };
  const TinyFgrams good = test::make_fgrams(100, 500, 4, 2);
  const auto changed = [&](std::size_t id, TableKey key) {
    TinyFgrams bad = good;
    bad.keys[id] = key;
    return bad;
  };
  using testing::HasSubstr;
  EXPECT_THAT(message(changed(9, {9, 1, true})), HasSubstr("f-gram 9 has prefix 9"));
  EXPECT_THAT(message(changed(9, {-101, 1, true})), HasSubstr("f-gram 9 has prefix -101"));
  EXPECT_THAT(message(changed(9, {-1, 100, true})), HasSubstr("last token 100"));
  EXPECT_THAT(message(changed(9, {-1, -1, true})), HasSubstr("last token -1"));
  EXPECT_THAT(message(changed(499, good.keys[7])), HasSubstr("f-gram 499 is the same as f-gram 7"));
  EXPECT_THAT(message(changed(499, {0, 0, false})),
              HasSubstr("expected 0 ids without a key, found 1"));
  TinyFgrams orphan = good;
  std::size_t child = 0;
  while (orphan.keys[child].prefix < 0) ++child;
  orphan.keys[static_cast<std::size_t>(orphan.keys[child].prefix)].used = false;
  orphan.header.unused = 1;
  EXPECT_THAT(message(orphan), HasSubstr("which has no key"));
  TinyFgrams longer = good;
  longer.header.max_length = 3;
  EXPECT_THAT(message(longer), HasSubstr("is longer than the longest, 3"));
  TinyFgrams none = good;
  none.header.token_vocabulary_size = 0;
  EXPECT_THAT(message(none), HasSubstr("token_vocabulary_size: expected 1.."));
  EXPECT_THAT(message(good), testing::StrEq("no error"));
}

TEST_F(TableIndexTest, RefusesForeignAndCutFiles) {
  using testing::HasSubstr;
  const TinyFgrams fgrams = test::make_fgrams(256, 5000, 5, 6);
  EXPECT_THAT(message_of_reading(), HasSubstr("index.bin: cannot be opened"));
  fgrams.write(path_);
  const auto bytes = std::filesystem::file_size(path_);
  for (const std::uintmax_t size : {std::uintmax_t{0}, std::uintmax_t{4095}, bytes - 1}) {
    fgrams.write(path_);
    std::filesystem::resize_file(path_, size);
    EXPECT_THAT(message_of_reading(), HasSubstr("(cut short)")) << size;
  }
  const std::pair<const char*, const char*> changes[] = {
      {"scone-fgram-index", "scone-fgram-xndex"}, {"\"format_version\":1", "\"format_version\":9"},
      {"\"rows\":5000", "\"rows\":4000"},         {"\"token_bits\":8", "\"token_bits\":9"},
      {"\"rows\":5000", "\"rows\":-500"},         {"\"head_ids\":4096", "\"head_ids\":5096"},
      {"\"unused\":0", "\"unused\":1"},           {"\"format\":", "\"xormat\":"}};
  for (const auto& [from, to] : changes) {
    fgrams.write(path_);
    test::replace_text(path_, from, to);
    EXPECT_THAT(message_of_reading(), HasSubstr("index")) << to;
  }
}

/// Each section that a look-up walks through is checked when it is read.
TEST_F(TableIndexTest, NamesWhatIsDamaged) {
  using testing::HasSubstr;
  const TinyFgrams fgrams = test::make_fgrams(256, 6000, 5, 7);
  fgrams.write(path_, 500);
  std::string page(kIndexPageBytes, ' ');
  std::ifstream(path_, std::ios::binary).read(page.data(), kIndexPageBytes);
  const IndexLayout layout = parse_index_page(page, "page");
  const auto message = [&](std::int64_t offset, unsigned char flip) {
    fgrams.write(path_, 500);
    test::change_byte(path_, offset, flip);
    return message_of_reading();
  };
  const std::int64_t starts = layout.starts().offset, degrees = layout.degrees().offset;
  EXPECT_THAT(message(starts + 4 * 100 + 3, 0x7f), HasSubstr("end before they begin"));
  EXPECT_THAT(message(starts, 1), HasSubstr("the starts do not cover"));
  EXPECT_THAT(message(starts + layout.starts().bytes - 1, 1), HasSubstr("the starts do not cover"));
  EXPECT_THAT(message(degrees + 100, 0x10), HasSubstr("expected the degrees of 5500 ids, found"));
  // As many zeros, the last of them not at the end.
  fgrams.write(path_, 500);
  test::change_byte(path_, degrees + (layout.degree_bits() - 1) / 8,
                    static_cast<unsigned char>(1U << (layout.degree_bits() - 1) % 8));
  std::ifstream file(path_, std::ios::binary);
  file.seekg(degrees);
  std::int64_t one = 0;
  int byte = 0;
  while ((byte = file.get()) == 0) ++one;
  file.close();
  test::change_byte(path_, degrees + one, static_cast<unsigned char>(byte & -byte));
  EXPECT_THAT(message_of_reading(), HasSubstr("found 5500 and an open one"));
  EXPECT_THAT(message(layout.directory().offset + 4 * 40, 1), HasSubstr("number 40 of the dir"));
  // The lowest bits of an entry are of its id: another entry has that.
  EXPECT_EQ(layout.entry_bits(), 21);
  EXPECT_THAT(message(layout.packed().offset + 21 * 8, 1), HasSubstr("or an id of two keys"));
  EXPECT_THAT(message(layout.packed().offset + 21 * 8 + 1, 0x10),
              HasSubstr("out of order or range"));
}

/// A bit flipped anywhere: the file is refused, or what is found stays in range.
TEST_F(TableIndexTest, DamageLeavesNoWayOut) {
  const TinyFgrams fgrams = test::make_fgrams(256, 6000, 5, 7);
  fgrams.write(path_, 500);
  const auto bytes = static_cast<std::int64_t>(std::filesystem::file_size(path_));
  std::mt19937_64 random(1);
  int refused = 0, trials = 1500;
  for (int trial = 0; trial < trials; ++trial) {
    const auto at =
        4096 + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(bytes - 4096));
    const auto flip = static_cast<unsigned char>(1U << random() % 8);
    test::change_byte(path_, at, flip);
    try {
      const TableIndex index(path_);
      std::vector<std::int32_t> tokens(2000);
      for (auto& token : tokens) token = static_cast<std::int32_t>(random() % 256);
      std::vector<std::int64_t> ids(tokens.size());
      index.match(tokens, ids);
      for (const std::int64_t id : ids) ASSERT_TRUE(id >= -1 && id < 6000);
    } catch (const InputError&) {
      ++refused;
    }
    test::change_byte(path_, at, flip);
  }
  std::printf("%d of %d flipped bits were refused\n", refused, trials);
  EXPECT_GT(refused, trials / 4);
  EXPECT_EQ(message_of_reading(), "no error");
}

TEST_F(TableIndexTest, RefusesUnequalSizes) {
  const TableIndex index = write_and_read(test::make_fgrams(256, 100, 5, 6));
  std::vector<std::int32_t> tokens(5);
  std::vector<std::int64_t> ids(4), offsets{0, 2, 4};
  std::vector<std::uint8_t> lengths(4);
  EXPECT_THROW(index.match(tokens, ids), std::invalid_argument);
  EXPECT_THROW(index.match({tokens.data(), 4}, ids, {lengths.data(), 3}), std::invalid_argument);
  EXPECT_THROW(index.find(tokens, offsets, ids), std::invalid_argument);
  offsets = {0, 2, 6};
  EXPECT_THROW(index.find(tokens, offsets, {ids.data(), 2}), std::invalid_argument);
  offsets = {0, 3, 2};
  EXPECT_THROW(index.find(tokens, offsets, {ids.data(), 2}), std::invalid_argument);
}

}  // namespace
}  // namespace scone
