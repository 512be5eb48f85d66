#include "data/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>
#include <unordered_map>

#include "data/byte_alphabet.h"
#include "data/tokenizer_training.h"
#include "parallel/error.h"
#include "shard_writer.h"

namespace scone {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using Ids = std::vector<std::int32_t>;

std::string in_alphabet(const std::string& bytes) {
  std::string text;
  for (const char byte : bytes) text += byte_to_character(static_cast<unsigned char>(byte));
  return text;
}

/// Tokens 0-255 are the bytes; each merge adds a token, in order.
json bpe_model(const std::vector<std::pair<std::string, std::string>>& merges, bool pairs = false) {
  json vocabulary = json::object();
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary[byte_to_character(static_cast<unsigned char>(byte))] = byte;
  }
  json rules = json::array();
  int next = 256;
  for (const auto& [left, right] : merges) {
    const std::string a = in_alphabet(left), b = in_alphabet(right);
    rules.push_back(pairs ? json{a, b} : json(a + " " + b));
    if (!vocabulary.contains(a + b)) vocabulary[a + b] = next++;
  }
  return {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", rules}};
}

json gpt2_pre_tokenizer() {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}};
}

json llama3_pre_tokenizer() {
  const std::string pattern =
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  const json split = {{"type", "Split"},
                      {"pattern", {{"Regex", pattern}}},
                      {"behavior", "Isolated"},
                      {"invert", false}};
  const json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  return {{"type", "Sequence"}, {"pretokenizers", {split, bytes}}};
}

json tokenizer_json(const json& pre_tokenizer, const json& model,
                    const json& added = json::array()) {
  return {{"version", "1.0"}, {"added_tokens", added},     {"normalizer", nullptr},
          {"model", model},   {"post_processor", nullptr}, {"pre_tokenizer", pre_tokenizer}};
}

class TokenizerTest : public ::testing::Test {
 protected:
  std::filesystem::path write(const std::string& name, const std::string& bytes) const {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
    return folder_ / name;
  }
  std::unique_ptr<Tokenizer> load(const json& description) const {
    return load_tokenizer(write("tokenizer.json", description.dump()));
  }
  std::string error_of(const json& description) const {
    try {
      load(description);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no error";
  }
  TemporaryFolder folder_;
};

Ids encode(const Tokenizer& tokenizer, const std::string& text) {
  Ids ids;
  tokenizer.encode(text, ids);
  return ids;
}

/// The bytes of each token of the text.
std::vector<std::string> token_texts(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<std::string> texts;
  for (const std::int32_t id : encode(tokenizer, text)) texts.push_back(tokenizer.token_bytes(id));
  return texts;
}

std::string mixed_text(unsigned seed, int words) {
  static const std::vector<std::string> kParts = {"the",
                                                  " river",
                                                  "'s",
                                                  " don't",
                                                  "  ",
                                                  "\n\n",
                                                  "\t",
                                                  " 12345",
                                                  " Été",
                                                  "日本語",
                                                  "🙂🏽",
                                                  "▁",
                                                  "\r\n",
                                                  " if (x){}",
                                                  "_y+=1;",
                                                  "ﬁ",
                                                  "a\xCC\x81",
                                                  " ٣٤",
                                                  "\xC2\xA0",
                                                  "\xE2\x80\xA8",
                                                  "    \n",
                                                  "…—",
                                                  "<|endoftext|>",
                                                  "</s>"};
  std::mt19937 random(seed);
  std::string text;
  for (int i = 0; i < words; ++i) text += kParts[random() % kParts.size()];
  return text;
}

TEST_F(TokenizerTest, BytesAloneWithoutMerges) {
  const auto tokenizer = load(tokenizer_json(gpt2_pre_tokenizer(), bpe_model({})));
  EXPECT_EQ(tokenizer->vocabulary_size(), 256);
  EXPECT_EQ(tokenizer->end_of_document(), -1);
  EXPECT_EQ(tokenizer->fingerprint().size(), 16u);
  EXPECT_EQ(encode(*tokenizer, "aé\n"), (Ids{97, 0xC3, 0xA9, 10}));
  std::string every_byte;
  for (int byte = 0; byte < 256; ++byte) every_byte += static_cast<char>(byte);
  EXPECT_EQ(tokenizer->decode(encode(*tokenizer, every_byte)), every_byte);
  EXPECT_TRUE(encode(*tokenizer, "").empty());
}

TEST_F(TokenizerTest, MergesByRankThenFromTheLeft) {
  // Rank 0 'b'+'c' wins over 'a'+'b' though it stands to the right.
  for (const bool pairs : {false, true}) {
    const auto tokenizer = load(tokenizer_json(
        gpt2_pre_tokenizer(), bpe_model({{"b", "c"}, {"a", "b"}, {"a", "a"}, {"aa", "a"}}, pairs)));
    EXPECT_EQ(encode(*tokenizer, "abc"), (Ids{'a', 256}));
    EXPECT_EQ(encode(*tokenizer, "abab"), (Ids{257, 257}));
    EXPECT_EQ(encode(*tokenizer, "aaa"), (Ids{259}));
    EXPECT_EQ(encode(*tokenizer, "aaaaa"), (Ids{258, 259}));
  }
}

TEST_F(TokenizerTest, LongWordsMergeAsShortOnesDo) {
  // Runs of one letter merge alike at any length: 2^k letters by doubling, the rest from the left.
  std::vector<std::pair<std::string, std::string>> merges;
  for (std::size_t n = 1; n <= 16; n *= 2) {
    merges.emplace_back(std::string(n, 'a'), std::string(n, 'a'));
  }
  const auto tokenizer = load(tokenizer_json(gpt2_pre_tokenizer(), bpe_model(merges)));
  for (const std::size_t length : {1u, 31u, 47u, 48u, 49u, 63u, 64u, 65u, 1000u, 100003u}) {
    Ids expected(length / 32, 260);
    for (int bit = 4; bit >= 1; --bit) {
      if (length >> bit & 1) expected.push_back(255 + bit);
    }
    if (length & 1) expected.push_back('a');
    EXPECT_EQ(encode(*tokenizer, std::string(length, 'a')), expected) << length;
  }
}

TEST_F(TokenizerTest, RandomMergesAgainstTheDefinition) {
  // The definition, literally: apply the rules in order of rank, each wherever it fits.
  std::mt19937 random(5);
  std::vector<std::string> tokens = {"a", "b", "c"};
  std::vector<std::pair<std::string, std::string>> merges;
  while (merges.size() < 60) {
    const std::string left = tokens[random() % tokens.size()];
    const std::string right = tokens[random() % tokens.size()];
    if (std::find(tokens.begin(), tokens.end(), left + right) != tokens.end()) continue;
    merges.emplace_back(left, right);
    tokens.push_back(left + right);
  }
  const auto tokenizer = load(tokenizer_json(gpt2_pre_tokenizer(), bpe_model(merges)));
  for (int round = 0; round < 300; ++round) {
    std::string word;
    for (std::size_t n = 1 + random() % 120; n > 0; --n) word += "abc"[random() % 3];
    std::vector<std::string> symbols;
    for (const char c : word) symbols.emplace_back(1, c);
    for (bool merged = true; merged;) {
      merged = false;
      for (const auto& [left, right] : merges) {
        for (std::size_t i = 0; i + 1 < symbols.size() && !merged; ++i) {
          if (symbols[i] != left || symbols[i + 1] != right) continue;
          symbols[i] += right;
          symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(i) + 1);
          merged = true;
        }
        if (merged) break;
      }
    }
    EXPECT_EQ(token_texts(*tokenizer, word), symbols) << word;
  }
}

/// Merges that make one token of every prefix of the words, so that tokens show how text is cut.
json words_model(const std::vector<std::string>& words) {
  std::vector<std::pair<std::string, std::string>> merges;
  for (const std::string& word : words) {
    for (std::size_t n = 1; n < word.size(); ++n) {
      merges.emplace_back(word.substr(0, n), word.substr(n, 1));
    }
  }
  return bpe_model(merges);
}

TEST_F(TokenizerTest, Gpt2Words) {
  const std::vector<std::string> words = {"I", "'m", " 1234", " é", " ", "  ", "?!", "\n", " cat"};
  const auto tokenizer = load(tokenizer_json(gpt2_pre_tokenizer(), words_model(words)));
  EXPECT_THAT(token_texts(*tokenizer, "I'm 1234 é   cat?!\n"),
              ::testing::ElementsAre("I", "'m", " 1234", " é", "  ", " cat", "?!", "\n"));
}

TEST_F(TokenizerTest, Llama3Words) {
  const std::vector<std::string> words = {"I", "'M", "123", "45", " cat", "?!\n\n", "(x", "  "};
  const auto tokenizer = load(tokenizer_json(llama3_pre_tokenizer(), words_model(words)));
  EXPECT_THAT(token_texts(*tokenizer, "I'M12345   cat?!\n\n(x"),
              ::testing::ElementsAre("I", "'M", "123", "45", "  ", " cat", "?!\n\n", "(x"));
}

TEST_F(TokenizerTest, IgnoreMergesTakesWholeWords) {
  json model = bpe_model({{"a", "b"}});
  model["vocab"]["abc"] = 257;
  EXPECT_EQ(encode(*load(tokenizer_json(llama3_pre_tokenizer(), model)), "abc"), (Ids{256, 'c'}));
  model["ignore_merges"] = true;
  EXPECT_EQ(encode(*load(tokenizer_json(llama3_pre_tokenizer(), model)), "abc"), (Ids{257}));
}

TEST_F(TokenizerTest, SpecialTokensAreNotMatchedInText) {
  const json added = {{{"id", 256}, {"content", "<|end_of_text|>"}, {"special", true}},
                      {{"id", 257}, {"content", "<tool>"}, {"special", false}}};
  for (const json& pre_tokenizer : {gpt2_pre_tokenizer(), llama3_pre_tokenizer()}) {
    const auto tokenizer = load(tokenizer_json(pre_tokenizer, bpe_model({}), added));
    EXPECT_EQ(tokenizer->vocabulary_size(), 258);
    EXPECT_EQ(tokenizer->end_of_document(), 256);
    EXPECT_EQ(tokenizer->token_bytes(256), "");
    EXPECT_EQ(tokenizer->token_bytes(257), "<tool>");
    EXPECT_EQ(encode(*tokenizer, "<|end_of_text|>").size(), 15u);
  }
}

TEST_F(TokenizerTest, ByteBpeIsLosslessAndThreadSafe) {
  const auto tokenizer =
      load(tokenizer_json(gpt2_pre_tokenizer(), bpe_model({{"t", "h"}, {"th", "e"}, {" ", "r"}})));
  std::array<std::string, 4> texts;
  std::array<Ids, 4> alone, together;
  for (unsigned i = 0; i < texts.size(); ++i) {
    texts[i] = mixed_text(i, 20000) + "\xFF\xC3(";
    alone[i] = encode(*tokenizer, texts[i]);
    EXPECT_TRUE(tokenizer->decode(alone[i]) == texts[i]);
  }
  const auto fresh =
      load(tokenizer_json(gpt2_pre_tokenizer(), bpe_model({{"t", "h"}, {"th", "e"}, {" ", "r"}})));
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    threads.emplace_back([&, i] { fresh->encode(texts[i], together[i]); });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < texts.size(); ++i) EXPECT_TRUE(alone[i] == together[i]);
}

TEST_F(TokenizerTest, UnsupportedAndDamagedFilesAreNamed) {
  json description = tokenizer_json(gpt2_pre_tokenizer(), bpe_model({}));
  description["normalizer"] = {{"type", "NFC"}};
  EXPECT_THAT(error_of(description),
              AllOf(HasSubstr("tokenizer.json"), HasSubstr("normalizer: found NFC"),
                    HasSubstr("supported:")));
  description = tokenizer_json({{"type", "Metaspace"}}, bpe_model({}));
  EXPECT_THAT(error_of(description), HasSubstr("pre_tokenizer: found Metaspace"));
  description = tokenizer_json(nullptr, bpe_model({}));
  EXPECT_THAT(error_of(description), HasSubstr("pre_tokenizer: found null"));
  description = tokenizer_json(gpt2_pre_tokenizer(), {{"type", "WordPiece"}});
  EXPECT_THAT(error_of(description), HasSubstr("model: found WordPiece"));
  description = tokenizer_json(gpt2_pre_tokenizer(), bpe_model({}));
  description["model"]["byte_fallback"] = true;
  EXPECT_THAT(error_of(description), HasSubstr("model.byte_fallback"));
  description = tokenizer_json(gpt2_pre_tokenizer(), bpe_model({}));
  description["model"]["vocab"].erase(byte_to_character(10));
  EXPECT_THAT(error_of(description), HasSubstr("none for 0x0a"));
  description = tokenizer_json(gpt2_pre_tokenizer(), bpe_model({}));
  description["model"]["merges"] = {"x y"};
  EXPECT_THAT(error_of(description), HasSubstr("model.merges[0]: 'x' + 'y'"));
  description = tokenizer_json(llama3_pre_tokenizer(), bpe_model({}));
  description["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "a(b";
  EXPECT_THAT(error_of(description), HasSubstr("pretokenizers[0]"));

  EXPECT_THROW(load_tokenizer(folder_ / "nothing"), InputError);
  EXPECT_THROW(load_tokenizer(write("empty.model", "")), InputError);
  EXPECT_THROW(load_tokenizer(write("cut.json", "{\"model\": ")), InputError);
  EXPECT_THROW(load_tokenizer(write("foreign.model", "\x89PNG\r\n\x1A\n some bytes")), InputError);
  const TemporaryFolder empty;
  EXPECT_THROW(load_tokenizer(empty / ""), InputError);
}

/// Text of a small grammar, different in every line.
std::string training_text(unsigned seed, int lines) {
  static const std::vector<std::string> kWords = {
      "river",   "valley",  "stone",   "winter", "carries", "under", "the",
      "a",       "slow",    "bridge",  "seven",  "lantern", "quiet", "morning",
      "returns", "through", "harbour", "and",    "of",      "café"};
  std::mt19937 random(seed);
  std::string text;
  for (int line = 0; line < lines; ++line) {
    text += std::string(2 * (random() % 3), ' ');
    for (std::size_t n = 3 + random() % 9; n > 0; --n)
      text += kWords[random() % kWords.size()] + ' ';
    text += std::to_string(random() % 1000) + (random() % 4 == 0 ? "\n\n" : ",\tyes.\n");
  }
  return text;
}

std::filesystem::path train(const TemporaryFolder& folder, const std::string& name,
                            std::vector<std::string> documents, std::int64_t size, int threads) {
  std::size_t next = 0;
  const auto next_document = [&](std::string& document) {
    if (next == documents.size()) return false;
    document = documents[next++];
    return true;
  };
  train_tokenizer(next_document, size, folder / name, threads);
  return folder / name;
}

TEST_F(TokenizerTest, TrainedModelIsLossless) {
  const auto file =
      train(folder_, "tokenizer.model", {training_text(1, 4000), training_text(2, 4000)}, 400, 2);
  const auto tokenizer = load_tokenizer(folder_ / "");  // finds it in the folder
  EXPECT_EQ(tokenizer->file(), file);
  EXPECT_EQ(tokenizer->vocabulary_size(), 400);
  ASSERT_GE(tokenizer->end_of_document(), 0);
  EXPECT_EQ(tokenizer->token_bytes(tokenizer->end_of_document()), "");

  const std::string like = training_text(3, 200);
  const Ids ids = encode(*tokenizer, like);
  EXPECT_EQ(tokenizer->decode(ids), like);
  const double bytes_per_token = static_cast<double>(like.size()) / static_cast<double>(ids.size());
  std::printf("trained model: %.2f bytes a token\n", bytes_per_token);
  EXPECT_GT(bytes_per_token, 2.5);

  for (unsigned seed = 0; seed < 20; ++seed) {
    const std::string text = mixed_text(seed, 300) + "\xFF\xC3(";
    EXPECT_EQ(tokenizer->decode(encode(*tokenizer, text)), text) << seed;
  }
  for (const std::string text :
       {" ", "  a", "a  ", "\n", "\n\n\n", "\t x", "▁a", "</s>", "<0x41>"}) {
    EXPECT_EQ(tokenizer->decode(encode(*tokenizer, text)), text);
  }
}

/// What the library itself gives for the whole text at once.
Ids library_ids(const std::filesystem::path& model, const std::string& text) {
  sentencepiece::SentencePieceProcessor processor;
  EXPECT_TRUE(processor.Load(model.string()).ok());
  std::vector<int> ids;
  EXPECT_TRUE(processor.Encode(text, &ids).ok());
  return {ids.begin(), ids.end()};
}

std::string long_text() {
  std::string text;
  for (unsigned seed = 0; seed < 60; ++seed) text += training_text(100 + seed, 80);
  EXPECT_GT(text.size(), 200'000u);  // far over the size at which texts are cut
  return text;
}

TEST_F(TokenizerTest, WordByWordGivesTheIdsOfTheWholeText) {
  const auto file = train(folder_, "tokenizer.model", {training_text(1, 4000)}, 400, 2);
  const auto tokenizer = load_tokenizer(file);
  const std::string text = long_text();
  EXPECT_TRUE(encode(*tokenizer, text) == library_ids(file, text));
}

TEST_F(TokenizerTest, ForeignModelsGiveTheLibrarysIds) {
  // With the library's defaults: a space in front, spaces joined, NFKC.
  write("text.txt", training_text(1, 4000));
  const std::string text = "  " + long_text() + " end  ";
  for (const std::string kind : {"unigram", "bpe"}) {
    for (const std::string prefix : {"true", "false"}) {
      const std::unordered_map<std::string, std::string> settings = {
          {"input", (folder_ / "text.txt").string()},
          {"model_prefix", (folder_ / kind).string()},
          {"model_type", kind},
          {"vocab_size", "90"},
          {"add_dummy_prefix", prefix},
          {"minloglevel", "2"}};
      const auto status = sentencepiece::SentencePieceTrainer::Train(settings);
      ASSERT_TRUE(status.ok()) << status.ToString();
      const auto file = folder_ / (kind + ".model");
      const auto tokenizer = load_tokenizer(file);
      EXPECT_EQ(tokenizer->vocabulary_size(), 90);
      EXPECT_EQ(tokenizer->end_of_document(), 2);
      EXPECT_TRUE(encode(*tokenizer, text) == library_ids(file, text)) << kind << " " << prefix;
      EXPECT_EQ(tokenizer->decode(encode(*tokenizer, "the  river")),
                prefix == "true" ? " the river" : "the river");
    }
  }
}

TEST_F(TokenizerTest, TrainingDependsOnTheTextAlone) {
  const std::vector<std::string> documents = {training_text(1, 2000), training_text(2, 2000)};
  const auto one = bytes_of_file(train(folder_, "one.model", documents, 380, 1));
  const auto four = bytes_of_file(train(folder_, "four.model", documents, 380, 4));
  EXPECT_TRUE(one == four);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "one.model.tmp"));
}

TEST_F(TokenizerTest, TrainingRefusesSizesThatCannotBe) {
  const auto message = [&](const std::vector<std::string>& documents, std::int64_t size) {
    try {
      train(folder_, "bad.model", documents, size, 1);
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_THAT(message({"some words of text\n"}, 32000),
              AllOf(HasSubstr("too big"), HasSubstr("at most")));
  EXPECT_THAT(message({training_text(1, 100)}, 200), HasSubstr("at least 264"));
  EXPECT_THAT(message({"\n\n", ""}, 300), HasSubstr("no text"));
  EXPECT_THROW(train(folder_, "no/such/folder.model", {training_text(1, 100)}, 300, 1), InputError);
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));  // nothing half-written
}

}  // namespace
}  // namespace scone
