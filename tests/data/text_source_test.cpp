#include "data/text_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "data/utf8.h"
#include "parallel/error.h"
#include "shard_writer.h"

namespace scone {
namespace {

using namespace std::string_literals;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

void write_file(const std::filesystem::path& path, std::string_view bytes) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string gzip(const std::string& bytes) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(deflateBound(&stream, bytes.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

std::string zstandard(const std::string& bytes) {
  std::string out(ZSTD_compressBound(bytes.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), bytes.data(), bytes.size(), 3));
  return out;
}

std::vector<std::string> documents_of(TextSource& source) {
  std::vector<std::string> documents;
  for (std::string document; source.next(document);) documents.push_back(document);
  return documents;
}

std::vector<std::string> documents_of(const std::vector<std::filesystem::path>& inputs,
                                      InvalidUtf8 policy = InvalidUtf8::replace) {
  TextSource source(inputs, policy);
  return documents_of(source);
}

/// The message of the InputError that reading `input` throws; "" where it throws none.
std::string error_of(const std::filesystem::path& input,
                     InvalidUtf8 policy = InvalidUtf8::replace) {
  try {
    documents_of({input}, policy);
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

std::string long_text(std::size_t bytes) {
  std::mt19937 random(3);
  std::string text;
  while (text.size() < bytes) text += "word" + std::to_string(random() % 5000) + " ";
  text.resize(bytes);
  return text;
}

TEST(Utf8, FindsIllFormedSequences) {
  // Unicode 15, table 3-8: maximal subparts are replaced by one U+FFFD each.
  std::string text =
      "a\xF1\x80\x80\xE1\x80\xC2"
      "b\x80"
      "c\x80\xBF"
      "d";
  EXPECT_EQ(replace_ill_formed_utf8(text), 6u);
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(text, "a" + r + r + r + "b" + r + "c" + r + r + "d");
  for (const char* bad : {"\xC0\xAF", "\xE0\x80\xBF", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xF8"}) {
    const std::string padded = "12345678901234567"s + bad;
    EXPECT_EQ(find_ill_formed_utf8(padded).offset, 17u);
  }
  for (const char* good : {"\xC2\x80", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEE\x80\x80",
                           "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF", "plain text, long enough"}) {
    EXPECT_EQ(find_ill_formed_utf8(good).offset, std::string_view::npos) << good;
  }
  EXPECT_EQ(count_ill_formed_utf8("\xE2\x82"), 1u);
}

TEST(TextSource, ReadsFoldersFilesAndJsonLines) {
  const TemporaryFolder folder;
  write_file(folder / "in/b.txt", "second\n");
  write_file(folder / "in/a/z.rst",
             "\xEF\xBB\xBF"
             "first\r\n");
  write_file(folder / "in/.hidden/c.txt", "hidden");
  write_file(folder / "in/.c.txt", "hidden");
  write_file(folder / "in/empty.txt", "");
  write_file(folder / "in/empty.txt.gz", "");
  write_file(folder / "lines.jsonl",
             "{\"text\": \"one\\nline \\u00e9\", \"id\": 1}\r\n\n{\"text\": \"\"}\n"
             "{\"meta\": {\"text\": 5}, \"text\": \"two\"}");
  TextSource source({folder / "lines.jsonl", folder / "in"}, InvalidUtf8::error);
  const std::vector<std::string> expected{"one\nline \xC3\xA9", "two", "first\r\n", "second\n"};
  EXPECT_EQ(documents_of(source), expected);
  EXPECT_EQ(source.counts().documents, 4);
  EXPECT_EQ(source.counts().empty_documents, 3);
  EXPECT_EQ(source.counts().text_bytes, 11 + 3 + 7 + 7);
  EXPECT_DOUBLE_EQ(source.progress(), 1);
}

TEST(TextSource, FollowsLinksAndTellsOfThoseToNothing) {
  const TemporaryFolder folder;
  write_file(folder / "in/a.txt", "in the folder");
  write_file(folder / "outside/b.txt", "behind a link");
  std::filesystem::create_directory_symlink("../outside", folder / "in/more");
  EXPECT_EQ(documents_of({folder / "in"}),
            (std::vector<std::string>{"in the folder", "behind a link"}));
  std::filesystem::create_symlink("nowhere", folder / "in/dangling");
  EXPECT_THAT(error_of(folder / "in"), HasSubstr("in/dangling: a link to what is not there"));
  std::filesystem::remove(folder / "in/dangling");
  std::filesystem::create_directory_symlink("..", folder / "in/round");
  EXPECT_THAT(error_of(folder / "in"), HasSubstr("Too many levels of symbolic links"));
}

TEST(TextSource, DecompressesMembersAndFrames) {
  const TemporaryFolder folder;
  const std::string text = long_text(3'500'000);  // several buffers
  write_file(folder / "a.txt.gz", gzip(text.substr(0, 1000)) + gzip(text.substr(1000)));
  write_file(folder / "b.txt.zst", zstandard(text.substr(0, 1000)) + zstandard(text.substr(1000)));
  write_file(folder / "c.txt", text);
  write_file(folder / "d", zstandard(text));  // told by content, not by name
  write_file(folder / "e.jsonl.gz", gzip("{\"text\": \"" + text + "\"}\n{\"text\": \"x\"}\n"));
  EXPECT_EQ(documents_of({folder.path()}),
            (std::vector<std::string>{text, text, text, text, text, "x"}));
}

TEST(TextSource, TreatsInvalidUtf8AsAsked) {
  const TemporaryFolder folder;
  write_file(folder / "a.txt", "ok \xFF\xFE end");
  TextSource replaced({folder / "a.txt"}, InvalidUtf8::replace);
  EXPECT_THAT(documents_of(replaced), ElementsAre("ok \xEF\xBF\xBD\xEF\xBF\xBD end"));
  EXPECT_EQ(replaced.counts().invalid_sequences, 2);
  TextSource kept({folder / "a.txt"}, InvalidUtf8::keep);
  EXPECT_THAT(documents_of(kept), ElementsAre("ok \xFF\xFE end"));
  EXPECT_EQ(kept.counts().invalid_sequences, 2);
  EXPECT_THAT(error_of(folder / "a.txt", InvalidUtf8::error),
              AllOf(HasSubstr("a.txt"), HasSubstr("byte 3"), HasSubstr("0xFF")));

  write_file(folder / "b.jsonl", "{\"text\": \"x\"}\n{\"text\": \"\xC3(\"}\n");
  EXPECT_THAT(documents_of({folder / "b.jsonl"}), ElementsAre("x", "\xEF\xBF\xBD("));
  EXPECT_THAT(error_of(folder / "b.jsonl", InvalidUtf8::error),
              AllOf(HasSubstr("b.jsonl:2"), HasSubstr("byte 24")));
  EXPECT_THAT(error_of(folder / "b.jsonl", InvalidUtf8::keep), HasSubstr("b.jsonl:2"));
}

TEST(TextSource, RefusesBadInput) {
  const TemporaryFolder folder;
  EXPECT_THAT(error_of(folder / "missing.txt"), HasSubstr("missing.txt"));
  write_file(folder / "empty.txt", "");
  EXPECT_THAT(error_of(folder / "empty.txt"), HasSubstr("empty"));
  std::filesystem::create_directories(folder / "nothing");
  EXPECT_THAT(error_of(folder / "nothing"), HasSubstr("nothing"));
  write_file(folder / "binary.txt", "text\0more"s);
  EXPECT_THAT(error_of(folder / "binary.txt"), AllOf(HasSubstr("NUL"), HasSubstr("byte 4")));
  write_file(folder / "a.jsonl", "{\"text\": \"x\"}\n{\"content\": \"x\"}\n");
  EXPECT_THAT(error_of(folder / "a.jsonl"), HasSubstr("a.jsonl:2"));
  write_file(folder / "b.jsonl", "{\"text\": 5}\n");
  EXPECT_THAT(error_of(folder / "b.jsonl"), AllOf(HasSubstr("b.jsonl:1"), HasSubstr("number")));
  write_file(folder / "c.jsonl", "\n\nnot json\n");
  EXPECT_THAT(error_of(folder / "c.jsonl"), HasSubstr("c.jsonl:3"));
  write_file(folder / "d.jsonl", "[1]\n");
  EXPECT_THAT(error_of(folder / "d.jsonl"), HasSubstr("array"));
  EXPECT_THROW(TextSource({}, InvalidUtf8::replace), InputError);
}

TEST(TextSource, RefusesDamagedCompression) {
  const TemporaryFolder folder;
  const std::string text = long_text(300'000);
  for (const std::string name : {"gz", "zst"}) {
    const std::string good = name == "gz" ? gzip(text) : zstandard(text);
    for (const std::size_t size : {good.size() - 1, good.size() / 2, std::size_t{5}}) {
      write_file(folder / ("cut." + name), good.substr(0, size));
      EXPECT_THAT(error_of(folder / ("cut." + name)), HasSubstr("cut." + name)) << size;
    }
    std::string damaged = good;
    for (std::size_t i = 0; i < 20; ++i) {
      damaged[damaged.size() / 2 + i] = static_cast<char>(~damaged[damaged.size() / 2 + i]);
    }
    write_file(folder / ("damaged." + name), damaged);
    if (name == "gz") {  // the command line tool's checksum is optional in Zstandard
      EXPECT_THAT(error_of(folder / ("damaged." + name)), HasSubstr("damaged." + name));
    }
    write_file(folder / ("foreign." + name), "plain text");
    EXPECT_THAT(error_of(folder / ("foreign." + name)), HasSubstr("foreign." + name));
  }
}

}  // namespace
}  // namespace scone
