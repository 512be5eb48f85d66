#pragma once

#include <yaml-cpp/yaml.h>

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "trainer/run_config.h"

namespace scone {

/// A YAML value that does not fit its key. what() has the form "expected .., found ..".
class ConfigValueError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// One key of the run configuration.
struct ConfigField {
  std::string key;  // dotted: "model.main.width"
  std::string comment;
  std::function<void(RunConfig&, const YAML::Node&)> parse;  // throws ConfigValueError
  std::function<std::string(const RunConfig&)> print;        // the value as YAML on one line
};

/// Every key there is, in the order in which it is printed, sections together. Parsing, overrides,
/// the check for unknown keys and to_yaml all read this one list.
const std::vector<ConfigField>& config_fields();

/// The field of a dotted key, or null.
const ConfigField* find_config_field(const std::string& key);

/// The one of `names` (at least one) that is nearest to `name` by edit distance.
const std::string& nearest_name(const std::string& name, const std::vector<std::string>& names);

/// The dotted key, or section, nearest to `key` by edit distance.
std::string nearest_config_key(const std::string& key);

}  // namespace scone
