#include "data/byte_bpe_tokenizer.h"

#include <fmt/format.h>

#include <array>
#include <cctype>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>
#include <utility>

#include "data/byte_alphabet.h"
#include "data/byte_bpe_merges.h"
#include "data/file_fingerprint.h"
#include "data/json_integer.h"
#include "data/word_cache.h"
#include "data/word_splitter.h"
#include "parallel/error.h"

namespace scone {
namespace {

using nlohmann::json;

constexpr const char* kSupported =
    "supported: model BPE without byte_fallback; no normalizer; pre_tokenizer ByteLevel, or a "
    "Sequence of Split (Isolated) and Digits that ends in ByteLevel. Take such a tokenizer.json or "
    "a SentencePiece tokenizer.model";

/// The expression of GPT-2's ByteLevel, as published with GPT-2.
constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

constexpr std::array kEndOfDocumentNames = {
    "<|endoftext|>", "<|end_of_text|>",      "</s>", "<eos>", "<|eos|>", "[EOS]", "<|im_end|>",
    "<|end|>",       "<｜end▁of▁sentence｜>"};

/// Ids beyond this are taken for damage rather than for a vocabulary.
constexpr std::int64_t kLargestId = 16'000'000;

std::string kind_of(const json& value) {
  if (value.is_null()) return "null";
  if (value.is_object() && value.contains("type") && value["type"].is_string()) {
    return value["type"].get<std::string>();
  }
  return value.is_object() ? "an object without type" : value.type_name();
}

/// value[key] as T, or `otherwise` where it is absent or null.
template <typename T>
T value_or(const json& value, const char* key, T otherwise) {
  const auto found = value.find(key);
  return found == value.end() || found->is_null() ? otherwise : found->get<T>();
}

}  // namespace

struct ByteBpeTokenizer::State {
  std::filesystem::path file;
  std::string fingerprint;
  std::string description;
  std::vector<WordSplitter> splitters;  // one after another
  bool add_prefix_space = false;
  bool ignore_merges = false;
  ByteBpeMerges merges;
  std::unordered_map<std::string, std::int32_t> whole_words;  // bytes; for ignore_merges alone
  std::vector<std::string> bytes;                             // by id; "" for special tokens
  std::int32_t end_of_document = -1;
  mutable WordCache cache;

  [[noreturn]] void unsupported(const std::string& key, const std::string& found) const {
    throw InputError(fmt::format("{}: {}: found {}, which is not supported; {}", file.string(), key,
                                 found, kSupported));
  }
  [[noreturn]] void damaged(const std::string& what) const {
    throw InputError(fmt::format("{}: {}; the file is damaged or of another kind: get it again",
                                 file.string(), what));
  }

  void read_pre_tokenizer(const json& value, const std::string& key, bool last);
  void read_split(const json& value, const std::string& key);
  void read_model(const json& root);
  void read_added_tokens(const json& root);
  void add_token(const std::string& name, std::int64_t id, std::string token_bytes);
  void encode_word(std::string_view word, std::vector<std::int32_t>& ids) const;
  void encode_from(std::size_t splitter, std::string_view text,
                   std::vector<std::int32_t>& ids) const;
};

void ByteBpeTokenizer::State::read_split(const json& value, const std::string& key) {
  const auto behavior = value.at("behavior").get<std::string>();
  const bool invert = value_or(value, "invert", false);
  // Removed with invert keeps the matches alone, which are all of the text in the files that use
  // it.
  if (behavior != "Isolated" && !(behavior == "Removed" && invert)) {
    unsupported(key + ".behavior", behavior);
  }
  const json& pattern = value.at("pattern");
  if (pattern.contains("Regex")) {
    splitters.emplace_back(pattern["Regex"].get<std::string>(), file.string() + ": " + key);
  } else if (pattern.contains("String")) {
    std::string literal;
    for (const char c : pattern["String"].get<std::string>()) {
      if (c != '_' && static_cast<unsigned char>(c) < 0x80 &&
          !std::isalnum(static_cast<unsigned char>(c))) {
        literal += '\\';
      }
      literal += c;
    }
    splitters.emplace_back(literal, file.string() + ": " + key);
  } else {
    unsupported(key + ".pattern", pattern.dump());
  }
}

void ByteBpeTokenizer::State::read_pre_tokenizer(const json& value, const std::string& key,
                                                 bool last) {
  const std::string kind = kind_of(value);
  if (kind == "Sequence") {
    const json& parts = value.at("pretokenizers");
    for (std::size_t i = 0; i < parts.size(); ++i) {
      read_pre_tokenizer(parts[i], fmt::format("{}.pretokenizers[{}]", key, i),
                         last && i + 1 == parts.size());
    }
    if (last && parts.empty()) unsupported(key, "an empty Sequence");
    return;
  }
  if (last != (kind == "ByteLevel")) unsupported(key, kind);
  if (kind == "Split") {
    read_split(value, key);
  } else if (kind == "Digits") {
    splitters.emplace_back(value_or(value, "individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)",
                           key);
  } else if (kind == "ByteLevel") {
    add_prefix_space = value_or(value, "add_prefix_space", true);
    if (add_prefix_space && !splitters.empty()) {
      unsupported(key + ".add_prefix_space", "true after a Split");
    }
    const bool splits = !splitters.empty();
    if (value_or(value, "use_regex", true)) splitters.emplace_back(kGpt2Pattern, key);
    description = splits ? "byte-level BPE (own expressions)" : "byte-level BPE (GPT-2)";
  } else {
    unsupported(key, kind);
  }
}

void ByteBpeTokenizer::State::add_token(const std::string& name, std::int64_t id,
                                        std::string token_bytes) {
  if (id < 0 || id > kLargestId) {
    damaged(
        fmt::format("expected ids of 0 to {}, found {} for the token '{}'", kLargestId, id, name));
  }
  const auto index = static_cast<std::size_t>(id);
  if (bytes.size() <= index) bytes.resize(index + 1);
  bytes[index] = std::move(token_bytes);
}

void ByteBpeTokenizer::State::read_model(const json& root) {
  const json& model = root.at("model");
  if (value_or<std::string>(model, "type", "BPE") != "BPE") unsupported("model", kind_of(model));
  if (value_or(model, "byte_fallback", false)) unsupported("model.byte_fallback", "true");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const auto text = value_or<std::string>(model, key, "");
    if (!text.empty()) unsupported(fmt::format("model.{}", key), text);
  }
  ignore_merges = value_or(model, "ignore_merges", false);

  std::unordered_map<std::string, std::int64_t> added;
  for (const json& token : root.value("added_tokens", json::array())) {
    added.emplace(token.at("content").get<std::string>(), json_integer(token.at("id")));
  }
  std::unordered_map<std::string, std::int64_t> vocabulary;
  for (const auto& [name, id] : model.at("vocab").get_ref<const json::object_t&>()) {
    vocabulary.emplace(name, json_integer(id));
  }
  for (const auto& [name, id] : vocabulary) {
    if (added.contains(name)) continue;
    const std::optional<std::string> token_bytes = bytes_of_characters(name);
    if (!token_bytes || token_bytes->empty()) {
      damaged(
          fmt::format("model.vocab: expected tokens in byte-level characters, found '{}'", name));
    }
    add_token(name, id, *token_bytes);
    if (ignore_merges) whole_words.emplace(*token_bytes, static_cast<std::int32_t>(id));
  }
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = vocabulary.find(byte_to_character(static_cast<unsigned char>(byte)));
    if (found == vocabulary.end()) {
      damaged(
          fmt::format("model.vocab: expected a token for each byte, found none for {:#04x}", byte));
    }
    merges.set_byte(static_cast<unsigned char>(byte), static_cast<std::int32_t>(found->second));
  }

  const json& rules = model.at("merges");
  merges.reserve(rules.size());
  for (std::size_t i = 0; i < rules.size(); ++i) {
    std::string left, right;
    if (rules[i].is_array() && rules[i].size() == 2) {
      left = rules[i][0].get<std::string>();
      right = rules[i][1].get<std::string>();
    } else {
      const auto text = rules[i].get<std::string>();
      const std::size_t space = text.find(' ');
      if (space == std::string::npos) {
        damaged(fmt::format("model.merges[{}]: expected 'left right', found '{}'", i, text));
      }
      left = text.substr(0, space);
      right = text.substr(space + 1);
    }
    const auto left_token = vocabulary.find(left);
    const auto right_token = vocabulary.find(right);
    const auto merged = vocabulary.find(left + right);
    if (left_token == vocabulary.end() || right_token == vocabulary.end() ||
        merged == vocabulary.end()) {
      damaged(
          fmt::format("model.merges[{}]: '{}' + '{}': expected both and their merge in the "
                      "vocabulary",
                      i, left, right));
    }
    merges.add(static_cast<std::int32_t>(left_token->second),
               static_cast<std::int32_t>(right_token->second),
               static_cast<std::int32_t>(merged->second));
  }
}

void ByteBpeTokenizer::State::read_added_tokens(const json& root) {
  std::unordered_map<std::string, std::int64_t> special_ids;
  for (const json& token : root.value("added_tokens", json::array())) {
    const auto name = token.at("content").get<std::string>();
    const auto id = json_integer(token.at("id"));
    const bool special = value_or(token, "special", false);
    add_token(name, id, special ? "" : name);
    special_ids.emplace(name, id);
  }
  for (const char* name : kEndOfDocumentNames) {
    const auto found = special_ids.find(name);
    if (found == special_ids.end()) continue;
    end_of_document = static_cast<std::int32_t>(found->second);
    break;
  }
}

void ByteBpeTokenizer::State::encode_word(std::string_view word,
                                          std::vector<std::int32_t>& ids) const {
  cache.append(word, ids, [this](std::string_view unseen, std::vector<std::int32_t>& out) {
    const auto whole = ignore_merges ? whole_words.find(std::string(unseen)) : whole_words.end();
    if (whole != whole_words.end()) {
      out.push_back(whole->second);
    } else {
      merges.encode(unseen, out);
    }
  });
}

void ByteBpeTokenizer::State::encode_from(std::size_t splitter, std::string_view text,
                                          std::vector<std::int32_t>& ids) const {
  if (splitter == splitters.size()) {
    encode_word(text, ids);
    return;
  }
  splitters[splitter].split(text,
                            [&](std::string_view word) { encode_from(splitter + 1, word, ids); });
}

ByteBpeTokenizer::ByteBpeTokenizer(std::filesystem::path file, std::string_view text)
    : state_(std::make_unique<State>()) {
  state_->file = std::move(file);
  state_->fingerprint = xxh3_hex(text);
  try {
    const json root = json::parse(text);
    const auto normalizer = root.find("normalizer");
    if (normalizer != root.end() && !normalizer->is_null() &&
        !(kind_of(*normalizer) == "Sequence" && normalizer->at("normalizers").empty())) {
      state_->unsupported("normalizer", kind_of(*normalizer));
    }
    state_->read_pre_tokenizer(root.at("pre_tokenizer"), "pre_tokenizer", true);
    state_->read_model(root);
    state_->read_added_tokens(root);
  } catch (const json::exception& error) {
    state_->damaged(fmt::format("expected a tokenizer.json of Hugging Face: {}", error.what()));
  }
}

ByteBpeTokenizer::~ByteBpeTokenizer() = default;

std::int64_t ByteBpeTokenizer::vocabulary_size() const {
  return static_cast<std::int64_t>(state_->bytes.size());
}

void ByteBpeTokenizer::encode(std::string_view text, std::vector<std::int32_t>& ids) const {
  if (text.empty()) return;
  if (state_->add_prefix_space && text.front() != ' ') {
    state_->encode_from(0, " " + std::string(text), ids);
  } else {
    state_->encode_from(0, text, ids);
  }
}

std::string ByteBpeTokenizer::token_bytes(std::int32_t id) const {
  const auto index = static_cast<std::size_t>(id);
  return id >= 0 && index < state_->bytes.size() ? state_->bytes[index] : std::string();
}

std::int32_t ByteBpeTokenizer::end_of_document() const { return state_->end_of_document; }
std::string ByteBpeTokenizer::fingerprint() const { return state_->fingerprint; }
std::string ByteBpeTokenizer::description() const { return state_->description; }
std::filesystem::path ByteBpeTokenizer::file() const { return state_->file; }

}  // namespace scone
