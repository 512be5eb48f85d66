#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <vector>

namespace scone {

/// A whole number of a JSON file. get<std::int64_t>() would convert 1e300 too, which is undefined.
/// One of 2^63 or more comes out negative. Throws nlohmann::json::exception for anything else.
inline std::int64_t json_integer(const nlohmann::json& json) {
  return json.get_ref<const nlohmann::json::number_integer_t&>();
}

/// A list of them.
inline std::vector<std::int64_t> json_integers(const nlohmann::json& json) {
  std::vector<std::int64_t> numbers;
  for (const auto& number : json.get_ref<const nlohmann::json::array_t&>()) {
    numbers.push_back(json_integer(number));
  }
  return numbers;
}

}  // namespace scone
