#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "parallel/error.h"

namespace scone {

/// Deepest nesting of a JSON file that we read.
inline constexpr int kMostJsonDepth = 64;

/// Parses the JSON text of a file that may be damaged: nlohmann::json::parse() alone takes the last
/// of two equal keys, and any depth, though values are compared and printed by recursion. Throws
/// InputError; its message begins with `source`.
inline nlohmann::json parse_json_strictly(const std::string& text, const std::string& source) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& value) {
    using Event = nlohmann::json::parse_event_t;
    if (depth > kMostJsonDepth) {
      throw InputError(source + ": not valid JSON: nested deeper than " +
                       std::to_string(kMostJsonDepth) + " values");
    }
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(value.get<std::string>()).second) {
      throw InputError(source + ": not valid JSON: it holds the key " + value.dump() +
                       " twice in one object");
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text, check);
  } catch (const nlohmann::json::exception& error) {
    throw InputError(source + ": not valid JSON: " + error.what());
  }
}

/// A value of a JSON file, with its dotted key for messages: "FILE: table.width: expected a whole
/// number, found "x"". Everything that it throws is an InputError. The JSON must outlive it.
class JsonField {
 public:
  /// key: of `value` in the file; empty: it is the whole of it.
  JsonField(const nlohmann::json& value, std::string source, std::string key = "")
      : value_(&value), source_(std::move(source)), key_(std::move(key)) {}

  JsonField operator[](const std::string& name) const {
    if (!value_->is_object()) reject("an object");
    const auto found = value_->find(name);
    const std::string key = key_.empty() ? name : key_ + "." + name;
    if (found == value_->end()) throw InputError(source_ + ": " + key + ": the key is missing");
    return {*found, source_, key};
  }

  /// In least..most.
  std::int64_t integer(std::int64_t least, std::int64_t most) const {
    const std::string range = std::to_string(least) + ".." + std::to_string(most);
    if (!value_->is_number_integer()) reject("a whole number, " + range);
    // get() of a number of 2^63 or more would wrap.
    const bool beyond = value_->is_number_unsigned() &&
                        value_->get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX);
    if (beyond || value_->get<std::int64_t>() < least || value_->get<std::int64_t>() > most)
      reject(range);
    return value_->get<std::int64_t>();
  }
  bool boolean() const {
    if (!value_->is_boolean()) reject("true or false");
    return value_->get<bool>();
  }
  /// Names and fingerprints: short ones.
  const std::string& text() const {
    constexpr std::size_t kMostBytes = 1024;
    if (!value_->is_string() || value_->get_ref<const std::string&>().size() > kMostBytes)
      reject("a text of at most " + std::to_string(kMostBytes) + " bytes");
    return value_->get_ref<const std::string&>();
  }
  const nlohmann::json& object() const {
    if (!value_->is_object()) reject("an object");
    return *value_;
  }
  bool is_null() const { return value_->is_null(); }
  /// Throws unless it is this value.
  void expect(const nlohmann::json& expected, const std::string& why) const {
    if (*value_ != expected) reject(expected.dump() + why);
  }

  [[noreturn]] void reject(const std::string& expected) const {
    constexpr std::size_t kMostShown = 80;
    std::string found = value_->is_object()  ? "an object"
                        : value_->is_array() ? "a list"
                                             : value_->dump();
    if (found.size() > kMostShown) found = found.substr(0, kMostShown) + "..";
    const std::string key = key_.empty() ? "" : key_ + ": ";
    throw InputError(source_ + ": " + key + "expected " + expected + ", found " + found);
  }

 private:
  const nlohmann::json* value_;
  std::string source_, key_;
};

}  // namespace scone
