#include "launch/sweep/sweep_points.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <set>

#include "parallel/error.h"
#include "trainer/config_schema.h"

namespace scone {
namespace {

constexpr std::size_t kLongestName = 200;  // bytes; file systems allow 255

/// A YAML value as plain text, where it is a scalar.
std::string plain(const std::string& yaml) {
  const YAML::Node node = YAML::Load(yaml);
  return node.IsScalar() ? node.Scalar() : yaml;
}

std::string file_name_of(const std::string& text) {
  std::string name = text;
  for (char& c : name) {
    const bool stays =
        std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '.' || c == '+' || c == '-';
    if (!stays) c = '-';
  }
  return name;
}

/// The last two parts of a dotted key, which no two keys share.
std::string short_name(const std::string& key) {
  const auto dot = key.rfind('.', key.rfind('.') - 1);
  return dot == std::string::npos ? key : key.substr(dot + 1);
}

/// A point as it comes out of the product of axes.
struct Draft {
  SweepPoint point;
  std::vector<Setting> settings;
};

class Expansion {
 public:
  explicit Expansion(const SweepConfig& sweep) : sweep_(sweep) {}
  std::vector<SweepPoint> run();

 private:
  void expand_group(const PointGroup& group);
  void finish(Draft draft, const PointGroup& group, std::optional<std::uint64_t> seed);
  void derive(Draft& draft) const;
  std::string value_of(const Draft& draft, const std::string& key, const std::string& place) const;
  std::string derived_value(const Draft& draft, const DerivedSetting& derived) const;
  std::string name_of(const Draft& draft) const;
  [[noreturn]] void refuse(const Draft& draft, const std::string& what) const;
  void check_set_once(const Draft& draft) const;

  const SweepConfig& sweep_;
  std::vector<SweepPoint> points_;
  std::map<std::string, std::string> places_;                        // name -> of its group
  std::map<std::map<std::string, std::string>, std::string> known_;  // settings -> name
  std::optional<YAML::Node> base_;
};

std::vector<SweepPoint> Expansion::run() {
  try {
    base_ = YAML::LoadFile(sweep_.run);
  } catch (const YAML::BadFile&) {
    throw InputError(
        fmt::format("{}: run: {} cannot be read; give the path of a run configuration, from the "
                    "folder where scone is started",
                    sweep_.file.string(), sweep_.run));
  } catch (const YAML::Exception& exception) {
    throw InputError(fmt::format("{}:{}: not valid YAML: {}", sweep_.run, exception.mark.line + 1,
                                 exception.msg));
  }
  for (const PointGroup& group : sweep_.groups) expand_group(group);
  return std::move(points_);
}

void Expansion::expand_group(const PointGroup& group) {
  std::vector<Axis> axes = sweep_.axes;
  axes.insert(axes.end(), group.axes.begin(), group.axes.end());
  std::vector<Draft> drafts(1);
  drafts[0].point.group = group.name;
  drafts[0].settings = group.settings;
  for (const Axis& axis : axes) {
    std::vector<Draft> product;
    for (const Draft& draft : drafts) {
      for (const AxisValue& value : axis.values) {
        Draft next = draft;
        PointLabel label{axis.name, plain(value.label), {}};
        for (const Setting& setting : value.settings) label.keys.push_back(setting.key);
        next.point.labels.push_back(std::move(label));
        next.settings.insert(next.settings.end(), value.settings.begin(), value.settings.end());
        product.push_back(std::move(next));
      }
    }
    drafts = std::move(product);
  }
  const auto& seeds = group.seeds ? group.seeds : sweep_.seeds;
  for (const Draft& draft : drafts) {
    if (!seeds)
      finish(draft, group, std::nullopt);
    else
      for (const std::uint64_t seed : *seeds) finish(draft, group, seed);
  }
}

void Expansion::refuse(const Draft& draft, const std::string& what) const {
  throw InputError(fmt::format("{}: point {}: {}", sweep_.file.string(), draft.point.name, what));
}

std::string Expansion::name_of(const Draft& draft) const {
  std::vector<std::string> parts;
  if (!draft.point.group.empty()) parts.push_back(file_name_of(draft.point.group));
  for (const PointLabel& label : draft.point.labels) {
    const std::string value = file_name_of(label.value);
    parts.push_back(
        label.axis.find('.') == std::string::npos ? value : short_name(label.axis) + "-" + value);
  }
  if (draft.point.seed) parts.push_back(fmt::format("seed-{}", *draft.point.seed));
  return parts.empty() ? "run" : fmt::format("{}", fmt::join(parts, "_"));
}

void Expansion::check_set_once(const Draft& draft) const {
  std::map<std::string, std::string> places;
  for (const Setting& setting : draft.settings) {
    const auto [first, is_new] = places.emplace(setting.key, setting.place);
    if (!is_new)
      refuse(draft, fmt::format("{} is set twice, at {} and at {}; remove one", setting.key,
                                first->second, setting.place));
  }
}

std::string Expansion::value_of(const Draft& draft, const std::string& key,
                                const std::string& place) const {
  const auto own = std::find_if(draft.settings.begin(), draft.settings.end(),
                                [&](const Setting& setting) { return setting.key == key; });
  if (own != draft.settings.end()) return plain(own->value);
  YAML::Node node = YAML::Clone(*base_);
  std::size_t begin = 0;
  while (begin <= key.size() && node.IsMap()) {
    const std::size_t end = std::min(key.find('.', begin), key.size());
    node.reset(YAML::Node(node[key.substr(begin, end - begin)]));
    begin = end + 1;
  }
  if (begin <= key.size() || !node.IsDefined() || !node.IsScalar())
    refuse(draft, fmt::format("{}: {} has no value in this point: neither an axis nor {} sets it",
                              place, key, sweep_.run));
  return node.Scalar();
}

/// The value as it is printed in a configuration, where it is one of the key; so 10K equals 10000.
std::string canonical(const ConfigField& field, const std::string& text) {
  try {
    RunConfig config;
    field.parse(config, YAML::Load(text));
    return field.print(config);
  } catch (const ConfigValueError&) {
    return text;
  }
}

std::string Expansion::derived_value(const Draft& draft, const DerivedSetting& derived) const {
  if (!derived.from.empty()) {
    const ConfigField& field = *find_config_field(derived.from);
    const std::string value = value_of(draft, derived.from, derived.place);
    for (const auto& [of, text] : derived.values)
      if (canonical(field, of) == canonical(field, value)) return text;
    refuse(draft, fmt::format("{}: derived.{}.values: no entry for {} {}; add it", derived.place,
                              derived.key, derived.from, value));
  }
  std::string text;
  for (std::size_t at = 0; at < derived.text.size();) {
    const auto open = derived.text.find('{', at), close = derived.text.find('}', open);
    text += derived.text.substr(at, open - at);
    if (open == std::string::npos) break;
    if (close == std::string::npos)
      refuse(draft, fmt::format("{}: derived.{}: a {{ is not closed", derived.place, derived.key));
    const std::string key = derived.text.substr(open + 1, close - open - 1);
    if (find_config_field(key) == nullptr)
      refuse(draft, fmt::format("{}: derived.{}: '{}' names no key of a run; the nearest is {}",
                                derived.place, derived.key, key, nearest_config_key(key)));
    text += value_of(draft, key, derived.place);
    at = close + 1;
  }
  return text;
}

void Expansion::derive(Draft& draft) const {
  std::vector<Setting>
      found;  // looked up in what was given alone, so that their order is no matter
  for (const DerivedSetting& derived : sweep_.derived)
    found.push_back({derived.key, derived_value(draft, derived), derived.place});
  draft.settings.insert(draft.settings.end(), found.begin(), found.end());
}

void Expansion::finish(Draft draft, const PointGroup& group, std::optional<std::uint64_t> seed) {
  SweepPoint& point = draft.point;
  point.seed = seed;
  point.name = name_of(draft);
  if (point.name.size() > kLongestName)
    refuse(draft, "its name is too long for a folder; give an axis named values");
  const auto [other, is_new] = places_.emplace(point.name, group.place);
  if (!is_new)
    refuse(draft, fmt::format("two points have this name ({} and {}); give one entry of points "
                              "another name, or remove a value that is there twice",
                              other->second, group.place));
  derive(draft);
  check_set_once(draft);
  for (const Setting& setting : draft.settings)
    point.overrides.push_back(setting.key + "=" + setting.value);
  if (seed) point.overrides.push_back(fmt::format("run.seed={}", *seed));
  const auto folder = std::filesystem::path(sweep_.folder) / "points" / point.name;
  YAML::Emitter quoted;
  quoted << YAML::DoubleQuoted << folder.string();
  std::vector<std::string> overrides = point.overrides;
  overrides.push_back(std::string("run.folder=") + quoted.c_str());
  try {
    point.config = load_run_config(sweep_.run, overrides, sweep_.ranks());
  } catch (const InputError& error) {
    std::string what = error.what();
    for (const Setting& setting : draft.settings) {  // say where in the sweep's file it stands
      const std::string begin = "command line: " + setting.key + ":";
      if (what.starts_with(begin)) what = setting.place + what.substr(12);
    }
    refuse(draft, what);
  }
  const auto [same, is_other] = known_.emplace(settings_of(point.config), point.name);
  if (!is_other)
    refuse(draft, fmt::format("has the same settings as {}; remove one of them", same->second));
  points_.push_back(std::move(point));
}

}  // namespace

std::vector<SweepPoint> expand_points(const SweepConfig& sweep) { return Expansion(sweep).run(); }

std::map<std::string, std::string> settings_of(const RunConfig& config) {
  static const std::set<std::string> others = {"run.folder",       "run.time_limit",
                                               "data.prefetch",    "compute.threads",
                                               "parallel.overlap", "parallel.bucket_elements",
                                               "parallel.timeout", "trainer.microbatch_tokens"};
  std::map<std::string, std::string> settings;
  for (const ConfigField& field : config_fields()) {
    if (others.contains(field.key) || field.key.starts_with("checkpoint.") ||
        field.key.starts_with("logging."))
      continue;
    settings[field.key] = field.print(config);
  }
  return settings;
}

std::vector<std::string> changed_settings(const RunConfig& before, const RunConfig& now) {
  std::vector<std::string> lines;
  const auto old_settings = settings_of(before);
  for (const auto& [key, value] : settings_of(now)) {
    const std::string& old_value = old_settings.at(key);
    if (old_value != value)
      lines.push_back(fmt::format("{}: {} before, {} now", key, old_value, value));
  }
  return lines;
}

}  // namespace scone
