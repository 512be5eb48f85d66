#include "checkpoint/bundle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <set>

#include "checkpoint/bake.h"
#include "checkpoint/durable_file.h"
#include "model/main_model.h"
#include "model/ops/ops.h"
#include "parallel/error.h"
#include "tiny_run.h"

namespace scone {
namespace {

namespace fs = std::filesystem;
using ::testing::AnyOf;
using ::testing::HasSubstr;

class BundleTest : public ::testing::Test {
 protected:
  BundleTest() : run_(folder_.path()), path_(folder_.path() / "bundle") {
    const auto self = make_self_communicator();
    BakeOptions options;
    options.source = run_.folder;
    options.bundle = path_;
    bake_bundle(options, cpu_backend(), *self);
  }
  std::string open_error() const {
    try {
      open_bundle(path_);
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  }
  void edit_description(const std::function<void(nlohmann::json&)>& edit) const {
    nlohmann::json json = read_json_file(path_ / "bundle.json");
    edit(json);
    std::ofstream(path_ / "bundle.json") << json.dump();
  }

  TemporaryFolder folder_;
  TinyRun run_;
  fs::path path_;
};

TEST_F(BundleTest, HoldsModelTokenizerAndFgrams) {
  EXPECT_TRUE(is_bundle(path_));
  EXPECT_FALSE(is_bundle(folder_.path()));
  const Bundle bundle = open_bundle(path_);
  EXPECT_EQ(bundle.description.at("step"), 100);
  EXPECT_EQ(bundle.config.main.layers, 2);
  EXPECT_EQ(bundle.matcher->size(), 600);
  EXPECT_EQ(bundle.table->rows(), 600);
  EXPECT_EQ(bundle.table->width(), 16);
  EXPECT_EQ(read_bytes(path_ / "tokenizer.json"), read_bytes(folder_.path() / "tokenizer.json"));
  ParameterSet parameters(main_parameter_specs(bundle.config), Device::cpu);
  bundle.load_main_parameters(parameters);
  EXPECT_EQ(std::memcmp(parameters.flat_values().raw(), run_.main_parameters.flat_values().raw(),
                        parameters.flat_values().bytes()),
            0);
  EXPECT_TRUE(bundle_problems(path_).empty());
}

TEST_F(BundleTest, MatcherIsTheVocabularys) {
  const Bundle bundle = open_bundle(path_);
  const FgramVocabulary vocabulary(run_.vocabulary_path);
  EXPECT_EQ(bundle.matcher->fingerprint(), vocabulary.fingerprint());
  EXPECT_EQ(bundle.matcher->tokenizer_fingerprint(), vocabulary.tokenizer_fingerprint());
  EXPECT_EQ(bundle.matcher->max_length(), vocabulary.max_length());
  std::vector<std::int32_t> tokens;
  for (std::int64_t id = 0; id < 600; ++id)
    for (const std::int32_t token : vocabulary.tokens(id)) tokens.push_back(token);
  std::vector<std::int64_t> expected(tokens.size()), found(tokens.size());
  std::vector<std::uint8_t> expected_lengths(tokens.size()), lengths(tokens.size());
  vocabulary.match(tokens, expected, expected_lengths);
  bundle.matcher->match(tokens, found, lengths);
  EXPECT_EQ(found, expected);
  EXPECT_EQ(lengths, expected_lengths);
  found.assign(tokens.size(), -7);
  EXPECT_EQ(bundle.matcher->match_of_lengths(tokens, lengths, found), tokens.size());
  EXPECT_EQ(found, expected);
  // A length that no f-gram has there.
  const auto place =
      static_cast<std::size_t>(std::find(expected_lengths.begin() + 9, expected_lengths.end(), 0) -
                               expected_lengths.begin());
  ASSERT_LT(place, tokens.size());
  lengths[place] = 3;
  EXPECT_EQ(bundle.matcher->match_of_lengths(tokens, lengths, found), place);
  EXPECT_EQ(vocabulary.match_of_lengths(tokens, lengths, found), place);
}

TEST_F(BundleTest, ChangedBytesAreFoundInEveryFile) {
  for (const char* name :
       {"model.safetensors", "table/index.bin", "table/rows-00000.bin", "tokenizer.json"}) {
    const auto middle = static_cast<std::int64_t>(fs::file_size(path_ / name) / 2);
    flip_byte(path_ / name, middle);
    const auto problems = bundle_problems(path_);
    ASSERT_EQ(problems.size(), 1U) << name;
    EXPECT_THAT(problems[0], HasSubstr(name));
    flip_byte(path_ / name, middle);
  }
  EXPECT_TRUE(bundle_problems(path_).empty());
}

TEST_F(BundleTest, EachProblemIsALine) {
  fs::resize_file(path_ / "table/rows-00000.bin", 5000);
  fs::remove(path_ / "tokenizer.json");
  flip_byte(path_ / "model.safetensors", 900);
  const auto problems = bundle_problems(path_);
  ASSERT_EQ(problems.size(), 3U);
  EXPECT_THAT(problems[0], HasSubstr("model.safetensors"));
  EXPECT_THAT(problems[1], HasSubstr("rows-00000.bin"));
  EXPECT_THAT(problems[2], HasSubstr("tokenizer.json"));
  edit_description([](auto& json) { json["format_version"] = 1; });
  ASSERT_EQ(bundle_problems(path_).size(), 1U);
  EXPECT_THAT(bundle_problems(path_)[0], HasSubstr("version"));
}

TEST_F(BundleTest, TruncatedAndMissingFilesAreNamed) {
  for (const char* name :
       {"model.safetensors", "table/index.bin", "table/rows-00000.bin", "tokenizer.json"}) {
    const std::string whole = read_bytes(path_ / name);
    fs::resize_file(path_ / name, whole.size() - 1);
    EXPECT_THAT(open_error(), HasSubstr(name));
    fs::remove(path_ / name);
    EXPECT_THAT(open_error(), HasSubstr(name));
    std::ofstream(path_ / name, std::ios::binary) << whole;
    EXPECT_EQ(open_error(), "");
  }
}

TEST_F(BundleTest, ADescriptionThatDoesNotFitIsRejected) {
  const nlohmann::json good = read_json_file(path_ / "bundle.json");
  const auto error_of = [&](const std::function<void(nlohmann::json&)>& edit) {
    edit_description(edit);
    const std::string error = open_error();
    std::ofstream(path_ / "bundle.json") << good.dump();
    return error;
  };
  EXPECT_THAT(error_of([](auto& json) { json["format"] = "x"; }), HasSubstr("scone-bundle"));
  EXPECT_THAT(error_of([](auto& json) { json["format_version"] = 1; }), HasSubstr("version"));
  EXPECT_THAT(error_of([](auto& json) { json.erase("model"); }), HasSubstr("model"));
  EXPECT_THAT(error_of([](auto& json) { json["model"]["main"]["width"] = 32; }),
              HasSubstr("width"));
  EXPECT_THAT(error_of([](auto& json) { json["table"]["dtype"] = "bf16"; }),
              HasSubstr("rows-00000.bin"));
  EXPECT_THAT(error_of([](auto& json) { json["table"]["rows"] = 599; }), HasSubstr("fgrams.size"));
  EXPECT_THAT(error_of([](auto& json) { json["fgrams"]["size"] = 599; }), HasSubstr("fgrams.size"));
  EXPECT_THAT(error_of([](auto& json) { json["fgrams"]["fingerprint"] = "0"; }),
              HasSubstr("rows-00000.bin"));
  EXPECT_THAT(error_of([](auto& json) { json["files"].erase("table/rows-00000.bin"); }),
              HasSubstr("rows-00000.bin"));
  for (const char* key : {"step", "sequence_length", "attention_across_documents", "tokenizer"}) {
    EXPECT_THAT(error_of([&](auto& json) { json.erase(key); }), HasSubstr(key));
    EXPECT_THAT(error_of([&](auto& json) { json[key] = "x"; }), HasSubstr("bundle.json")) << key;
  }
  EXPECT_THAT(error_of([](auto& json) { json["sequence_length"] = 0; }),
              HasSubstr("sequence_length"));
  EXPECT_THAT(error_of([](auto& json) { json["table"] = nullptr; }), HasSubstr("no table"));
  EXPECT_THAT(error_of([](auto& json) { json["tokenizer"]["file"] = "other.json"; }),
              HasSubstr("other.json"));
  for (const char* key : {"width", "layers", "heads", "ffw", "context"}) {
    for (const std::int64_t value : {std::int64_t{0}, std::int64_t{-1}, std::int64_t{1} << 40}) {
      EXPECT_THAT(error_of([&](auto& json) { json["model"]["main"][key] = value; }),
                  HasSubstr(std::string("main.") + key));
    }
  }
  std::ofstream(path_ / "bundle.json") << "{";
  EXPECT_THAT(open_error(), HasSubstr("not valid JSON"));
}

/// Calls visit(dotted key, pointer) for each value of the JSON that others lie in or not.
void for_each_value(
    const nlohmann::json& json, const std::string& key, const nlohmann::json::json_pointer& place,
    const std::function<void(const std::string&, const nlohmann::json::json_pointer&)>& visit) {
  for (const auto& [name, value] : json.items()) {
    const std::string here = key.empty() ? name : key + "." + name;
    visit(here, place / name);
    if (value.is_object()) for_each_value(value, here, place / name, visit);
  }
}

// A bundle may come from anybody. What opens in spite of a damaged value does not use it.
TEST_F(BundleTest, EveryDamagedValueIsRefusedByFileAndKeyOrNotUsed) {
  const nlohmann::json good = read_json_file(path_ / "bundle.json");
  const nlohmann::json deep = nlohmann::json::parse(std::string(40, '[') + std::string(40, ']'));
  const std::vector<nlohmann::json> damages = {
      nullptr,
      true,
      -1,
      0,
      1,
      INT64_MAX,
      UINT64_MAX,
      1e300,
      0.5,
      "",
      "x",
      "../x",
      "/etc/hostname",
      std::string(100000, 'x'),
      nlohmann::json::array(),
      nlohmann::json::object(),
      deep,
      nlohmann::json::object({{"../../x", {{"bytes", 1}, {"xxh3", "0"}}}})};
  std::map<std::string, int> opened;
  int refused = 0, refused_by_itself = 0;
  std::vector<std::string> names;  // of values and files
  for_each_value(good, "", nlohmann::json::json_pointer(),
                 [&](const std::string& key, const auto&) { names.push_back(key); });
  for (const auto& [file, ignored] : good.at("files").items()) names.push_back(file);
  for_each_value(
      good, "", nlohmann::json::json_pointer(), [&](const std::string& key, const auto& place) {
        for (const auto& damage : damages) {
          nlohmann::json bad = good;
          if (bad[place] == damage) continue;
          bad[place] = damage;
          std::ofstream(path_ / "bundle.json") << bad.dump();
          const std::string error = open_error();
          if (error.empty()) {
            ++opened[key];
            continue;
          }
          ++refused;
          EXPECT_THAT(error, HasSubstr(path_.string())) << key << " " << damage;
          EXPECT_LT(error.size(), 4000U) << key;
          // By the key itself, or another that it does not fit, or a file of the bundle.
          const bool named = std::any_of(names.begin(), names.end(), [&](const auto& name) {
            return error.find(": " + name + ": expected") != std::string::npos ||
                   error.find("/bundle/" + name + ": ") != std::string::npos;
          });
          const bool by_itself = error.find("bundle.json: " + key) != std::string::npos;
          refused_by_itself += by_itself;
          EXPECT_TRUE(named || by_itself)
              << key << " = " << damage.dump().substr(0, 80) << ": " << error;
        }
        nlohmann::json bad = good;
        bad[place.parent_pointer()].erase(place.back());
        std::ofstream(path_ / "bundle.json") << bad.dump();
        if (const std::string error = open_error(); !error.empty()) {
          EXPECT_THAT(error, AnyOf(HasSubstr(key), HasSubstr(": tokenizer.file: expected")))
              << "erased";
        } else {
          ++opened[key];
        }
      });
  EXPECT_GT(refused, 400);
  EXPECT_GT(refused_by_itself, 380);
  // What stays within its range; and what only whole checksums, or the live f-gram model, tell.
  for (const auto& [key, count] : opened) {
    EXPECT_TRUE(
        key.ends_with(".xxh3") || key.starts_with("model.fgram") ||
        std::set<std::string>({"step", "tokens", "tokenizer.fingerprint",
                               "attention_across_documents", "sequence_length", "model.main.heads"})
            .contains(key))
        << key << " opened with " << count << " damages";
    EXPECT_LE(count, 4) << key;
  }
}

TEST_F(BundleTest, NoFileOutsideOfTheFolderIsRead) {
  const std::string outside = (folder_.path() / "outside").string();
  std::ofstream(outside) << "of somebody else";
  for (const std::string name : {"../outside", "table/../../outside", "./tokenizer.json", "..", "",
                                 "table/", outside.c_str()}) {
    SCOPED_TRACE(name);
    const nlohmann::json good = read_json_file(path_ / "bundle.json");
    edit_description([&](auto& json) {
      json["files"][name] = json["files"]["tokenizer.json"];
      json["tokenizer"]["file"] = name;
    });
    EXPECT_THAT(open_error(),
                HasSubstr("bundle.json: tokenizer.file: expected the name of a file"));
    edit_description([&](auto& json) { json["tokenizer"]["file"] = "tokenizer.json"; });
    EXPECT_THAT(open_error(), HasSubstr("bundle.json: expected the name of a file in the bundle"));
    EXPECT_THAT(bundle_problems(path_).at(0), HasSubstr("expected the name of a file"));
    std::ofstream(path_ / "bundle.json") << good.dump();
  }
  EXPECT_EQ(open_error(), "");
}

TEST_F(BundleTest, LinksMayNotLeadOutOfTheFolder) {
  for (const std::string name : {"bundle.json", "model.safetensors", "tokenizer.json", "table",
                                 "table/index.bin", "table/rows-00000.bin"}) {
    SCOPED_TRACE(name);
    const fs::path outside = folder_.path() / "outside";
    fs::rename(path_ / name, outside);
    fs::create_symlink(outside, path_ / name);
    EXPECT_THAT(open_error(), HasSubstr("outside of the bundle"));
    EXPECT_THAT(bundle_problems(path_).at(0), HasSubstr("outside of the bundle"));
    if (name.starts_with("table") || name == "bundle.json") {
      EXPECT_THROW(FgramTable table(path_), InputError);
    }
    fs::remove(path_ / name);
    EXPECT_NE(open_error(), "");
    fs::create_symlink("nowhere", path_ / name);
    EXPECT_THAT(open_error(), HasSubstr(path_.string()));
    fs::remove(path_ / name);
    fs::rename(outside, path_ / name);
    EXPECT_EQ(open_error(), "");
  }
  // The folder itself may be reached by a link, and a link may stay inside.
  fs::create_directory_symlink(path_, folder_.path() / "link");
  EXPECT_NO_THROW(open_bundle(folder_.path() / "link"));
  fs::rename(path_ / "tokenizer.json", path_ / "inside");
  fs::create_symlink("inside", path_ / "tokenizer.json");
  EXPECT_EQ(open_error(), "");
}

TEST_F(BundleTest, OtherFilesThanBakesWriteAreRefused) {
  const std::string good = read_bytes(path_ / "bundle.json");
  const auto error_of = [&](const std::string& text) {
    std::ofstream(path_ / "bundle.json") << text;
    return open_error();
  };
  EXPECT_THAT(error_of(""), HasSubstr("bundle.json: not valid JSON"));
  EXPECT_THAT(error_of("[]"), HasSubstr("bundle.json: expected an object"));
  EXPECT_THAT(error_of("{\"step\": 1, " + good.substr(1)), HasSubstr("the key \"step\" twice"));
  const std::string deep(1000000, '[');
  EXPECT_THAT(error_of("{\"format\": " + deep), HasSubstr("nested deeper than 64"));
  EXPECT_EQ(error_of(good), "");
  for (const char* name :
       {"model.safetensors", "table/index.bin", "table/rows-00000.bin", "tokenizer.json"}) {
    const std::string whole = read_bytes(path_ / name);
    std::ofstream(path_ / name) << "";
    EXPECT_THAT(open_error(), HasSubstr(name));
    fs::remove(path_ / name);
    ASSERT_EQ(::mkfifo((path_ / name).c_str(), 0600), 0);
    EXPECT_THAT(open_error(), HasSubstr(name)) << "opening a pipe would wait for ever";
    if (std::string(name).starts_with("table")) {
      EXPECT_THROW(FgramTable table(path_), InputError);
    }
    fs::remove(path_ / name);
    std::ofstream(path_ / name, std::ios::binary) << whole;
  }
  EXPECT_EQ(open_error(), "");
  // A size that is listed to fit, of a header that does not.
  const std::string model = read_bytes(path_ / "model.safetensors");
  const auto model_error = [&](std::string bytes) {
    std::ofstream(path_ / "model.safetensors", std::ios::binary) << bytes;
    edit_description(
        [&](auto& json) { json["files"]["model.safetensors"]["bytes"] = bytes.size(); });
    return open_error();
  };
  EXPECT_THAT(model_error(model.substr(0, 200)), HasSubstr("model.safetensors: not a valid"));
  EXPECT_THAT(model_error(model.substr(0, 5)), HasSubstr("model.safetensors: not a valid"));
  for (const std::uint64_t length : {UINT64_MAX, std::uint64_t{1} << 62, std::uint64_t{0},
                                     std::uint64_t{1}, std::uint64_t{99'000'000}}) {
    std::string bytes = model;
    std::memcpy(bytes.data(), &length, 8);
    EXPECT_THAT(model_error(bytes), HasSubstr("model.safetensors: not a valid")) << length;
  }
  EXPECT_EQ(model_error(model), "");
}

}  // namespace
}  // namespace scone
