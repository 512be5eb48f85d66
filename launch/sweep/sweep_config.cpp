#include "launch/sweep/sweep_config.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <fstream>
#include <functional>
#include <iterator>
#include <set>
#include <utility>

#include "checkpoint/table/row_format.h"
#include "data/size_suffix.h"
#include "parallel/error.h"
#include "trainer/config_schema.h"

namespace scone {
namespace {

/// Reads one YAML file, and says where in it something is wrong.
class SweepReader {
 public:
  explicit SweepReader(std::filesystem::path file) { config_.file = std::move(file); }
  SweepConfig read();

 private:
  using Reader = std::function<void(const YAML::Node& value, const std::string& key)>;

  std::string place(const YAML::Node& node) const {
    const YAML::Mark mark = node.Mark();
    return mark.is_null() ? config_.file.string()
                          : fmt::format("{}:{}", config_.file.string(), mark.line + 1);
  }
  [[noreturn]] void fail(const YAML::Node& at, const std::string& key,
                         const std::string& what) const {
    throw InputError(fmt::format("{}: {}: {}", place(at), key, what));
  }
  /// Calls the reader of each key of a section. Of a key that is not listed, `other` where given.
  void read_section(const YAML::Node& section, const std::string& prefix,
                    const std::map<std::string, Reader>& readers,
                    const Reader& other = nullptr) const;
  std::string text(const YAML::Node& node, const std::string& key) const;
  bool flag(const YAML::Node& node, const std::string& key) const;
  std::int64_t number(const YAML::Node& node, const std::string& key, std::int64_t least,
                      std::int64_t most) const;
  std::vector<std::string> texts(const YAML::Node& node, const std::string& key) const;
  std::vector<std::uint64_t> seeds(const YAML::Node& node, const std::string& key) const;
  Setting setting(const YAML::Node& value, const std::string& key) const;
  std::vector<Setting> settings(const YAML::Node& section, const std::string& key) const;
  std::vector<Axis> axes(const YAML::Node& section, const std::string& key) const;
  Axis axis(const YAML::Node& values, const std::string& name) const;
  PointGroup group(const YAML::Node& entry) const;
  DerivedSetting derived(const YAML::Node& value, const std::string& key) const;
  LocalLauncher local(const YAML::Node& section) const;
  SlurmLauncher slurm(const YAML::Node& section) const;
  void check_key(const YAML::Node& at, const std::string& key) const;

  SweepConfig config_;
};

constexpr int kMost = 1 << 20;

/// A node as YAML on one line.
std::string yaml_text(const YAML::Node& node) {
  if (node.IsScalar() && node.Tag() != "!") return node.Scalar();  // as it stands, not quoted
  YAML::Emitter emitter;
  emitter.SetMapFormat(YAML::Flow);
  emitter.SetSeqFormat(YAML::Flow);
  if (node.IsScalar()) emitter.SetStringFormat(YAML::DoubleQuoted);
  if (node.IsScalar())
    emitter << node.Scalar();
  else
    emitter << node;
  return emitter.c_str();
}

void SweepReader::read_section(const YAML::Node& section, const std::string& prefix,
                               const std::map<std::string, Reader>& readers,
                               const Reader& other) const {
  const std::string name = prefix.empty() ? "the sweep" : prefix;
  if (!section.IsMap()) fail(section, name, "expected a section of keys");
  std::set<std::string> seen;
  for (const auto& entry : section) {
    if (!entry.first.IsScalar()) fail(entry.first, name, "expected a key, found a list or section");
    const std::string key = entry.first.Scalar();
    const std::string full = prefix.empty() ? key : prefix + "." + key;
    if (!seen.insert(key).second) fail(entry.first, full, "given twice; remove one");
    const auto reader = readers.find(key);
    if (reader != readers.end()) {
      reader->second(entry.second, full);
    } else if (other) {
      other(entry.second, key);
    } else {
      std::vector<std::string> keys;
      for (const auto& [valid, _] : readers) keys.push_back(valid);
      fail(entry.first, full,
           fmt::format("unknown key; the nearest valid key is {}", nearest_name(key, keys)));
    }
  }
}

std::string SweepReader::text(const YAML::Node& node, const std::string& key) const {
  if (!node.IsScalar() || node.Scalar().empty()) fail(node, key, "expected text");
  return node.Scalar();
}

bool SweepReader::flag(const YAML::Node& node, const std::string& key) const {
  if (!node.IsScalar() || (node.Scalar() != "true" && node.Scalar() != "false"))
    fail(node, key, "expected true or false");
  return node.Scalar() == "true";
}

std::int64_t SweepReader::number(const YAML::Node& node, const std::string& key, std::int64_t least,
                                 std::int64_t most) const {
  std::int64_t value = least - 1;
  try {
    if (node.IsScalar()) value = parse_size(node.Scalar());
  } catch (const InputError&) {
    value = least - 1;
  }
  if (value < least || value > most)
    fail(node, key,
         fmt::format("expected an integer from {} to {}{}", least, most,
                     node.IsScalar() ? fmt::format(", found '{}'", node.Scalar()) : ""));
  return value;
}

std::vector<std::string> SweepReader::texts(const YAML::Node& node, const std::string& key) const {
  if (node.IsScalar()) return {text(node, key)};
  if (!node.IsSequence()) fail(node, key, "expected text or a list of texts");
  std::vector<std::string> list;
  for (const YAML::Node& entry : node) list.push_back(text(entry, key));
  return list;
}

std::vector<std::uint64_t> SweepReader::seeds(const YAML::Node& node,
                                              const std::string& key) const {
  if (!node.IsSequence() || node.size() == 0) fail(node, key, "expected a list such as [1, 2]");
  std::vector<std::uint64_t> list;
  for (const YAML::Node& entry : node)
    list.push_back(static_cast<std::uint64_t>(number(entry, key, 0, std::int64_t{1} << 62)));
  return list;
}

void SweepReader::check_key(const YAML::Node& at, const std::string& key) const {
  if (find_config_field(key) == nullptr)
    fail(at, key, fmt::format("names no key of a run; the nearest is {}", nearest_config_key(key)));
  if (key == "run.folder")
    fail(at, key, "the sweep gives each point a folder of its own; remove it");
  if (key == "run.seed") fail(at, key, "seeds are given by `seeds: [..]`; move them there");
}

Setting SweepReader::setting(const YAML::Node& value, const std::string& key) const {
  check_key(value, key);
  return {key, yaml_text(value), place(value)};
}

std::vector<Setting> SweepReader::settings(const YAML::Node& section,
                                           const std::string& key) const {
  std::vector<Setting> list;
  read_section(section, key, {}, [&](const YAML::Node& value, const std::string& name) {
    list.push_back(setting(value, name));
  });
  return list;
}

Axis SweepReader::axis(const YAML::Node& values, const std::string& name) const {
  Axis axis{name, {}, place(values)};
  const std::string key = "axes." + name;
  if (name.find('.') != std::string::npos) {
    check_key(values, name);
    if (!values.IsSequence() || values.size() == 0)
      fail(values, key, "expected a list of values, such as [1, 2]");
    for (const YAML::Node& value : values) {
      const Setting one = setting(value, name);
      axis.values.push_back({one.value, {one}});
    }
    return axis;
  }
  if (!values.IsMap() || values.size() == 0) {
    // Most often a misspelt key, which has no dot either.
    fail(values, key,
         fmt::format("names no key of a run; the nearest is {}. An axis of another name holds "
                     "named values: {{small: {{model.main.width: 64}}, ..}}",
                     nearest_config_key(name)));
  }
  for (const auto& entry : values) {
    if (!entry.first.IsScalar() || entry.first.Scalar().empty())
      fail(entry.first, key, "expected a name");
    axis.values.push_back(
        {entry.first.Scalar(), settings(entry.second, key + "." + entry.first.Scalar())});
  }
  return axis;
}

std::vector<Axis> SweepReader::axes(const YAML::Node& section, const std::string& key) const {
  std::vector<Axis> list;
  read_section(section, key, {}, [&](const YAML::Node& values, const std::string& name) {
    list.push_back(axis(values, name));
  });
  return list;
}

PointGroup SweepReader::group(const YAML::Node& entry) const {
  PointGroup group;
  group.place = place(entry);
  read_section(
      entry, "points",
      {{"name", [&](const auto& value, const auto& key) { group.name = text(value, key); }},
       {"axes", [&](const auto& value, const auto& key) { group.axes = axes(value, key); }},
       {"seeds", [&](const auto& value, const auto& key) { group.seeds = seeds(value, key); }}},
      [&](const YAML::Node& value, const std::string& key) {
        if (key.find('.') == std::string::npos)
          fail(value, "points." + key,
               fmt::format("unknown key; expected name, axes, seeds, or a key of a run: the "
                           "nearest is {}",
                           nearest_config_key(key)));
        group.settings.push_back(setting(value, key));
      });
  if (group.name.empty()) fail(entry, "points", "an entry has no name; give it one");
  return group;
}

DerivedSetting SweepReader::derived(const YAML::Node& value, const std::string& key) const {
  check_key(value, key);
  DerivedSetting derived{key, "", "", {}, place(value)};
  if (!value.IsMap()) {
    derived.text = yaml_text(value);
    return derived;
  }
  const std::string prefix = "derived." + key;
  read_section(value, prefix,
               {{"from", [&](const auto& node, const auto& of) { derived.from = text(node, of); }},
                {"values", [&](const auto& node, const auto& of) {
                   if (!node.IsMap())
                     fail(node, of, "expected {value of the other key: value, ..}");
                   for (const auto& entry : node)
                     derived.values[entry.first.Scalar()] = yaml_text(entry.second);
                 }}});
  if (derived.from.empty() || derived.values.empty())
    fail(value, prefix, "expected `from` (a key) and `values`, or text with {key} in it");
  if (find_config_field(derived.from) == nullptr)
    fail(value, prefix + ".from",
         fmt::format("'{}' names no key of a run; the nearest is {}", derived.from,
                     nearest_config_key(derived.from)));
  return derived;
}

LocalLauncher SweepReader::local(const YAML::Node& section) const {
  LocalLauncher local;
  const auto count = [this](int& to, int least) -> Reader {
    return [this, &to, least](const YAML::Node& value, const std::string& key) {
      to = static_cast<int>(number(value, key, least, kMost));
    };
  };
  read_section(
      section, "launcher.local",
      {{"jobs", count(local.jobs, 1)},
       {"ranks", count(local.ranks, 1)},
       {"threads", count(local.threads, 1)},
       {"oversubscribe",
        [&](const auto& value, const auto& key) { local.oversubscribe = flag(value, key); }},
       {"mpirun", [&](const auto& value, const auto& key) { local.mpirun = text(value, key); }}});
  return local;
}

SlurmLauncher SweepReader::slurm(const YAML::Node& section) const {
  SlurmLauncher slurm;
  const auto count = [this](int& to, int least) -> Reader {
    return [this, &to, least](const YAML::Node& value, const std::string& key) {
      to = static_cast<int>(number(value, key, least, kMost));
    };
  };
  const auto word = [this](std::string& to) -> Reader {
    return [this, &to](const YAML::Node& value, const std::string& key) { to = text(value, key); };
  };
  read_section(
      section, "launcher.slurm",
      {{"account", word(slurm.account)},
       {"partition", word(slurm.partition)},
       {"time", word(slurm.time)},
       {"nodes", count(slurm.nodes, 1)},
       {"ntasks_per_node", count(slurm.ntasks_per_node, 1)},
       {"gpus_per_node", count(slurm.gpus_per_node, 0)},
       {"cpus_per_task", count(slurm.cpus_per_task, 1)},
       {"max_running", count(slurm.max_running, 0)},
       {"options", [&](const auto& value, const auto& key) { slurm.options = texts(value, key); }},
       {"script", word(slurm.script)}});
  for (const std::string& option : slurm.options)
    if (option.starts_with("--cluster") || option.starts_with("-M"))
      throw InputError(
          fmt::format("{}: launcher.slurm.options: {}: jobs on another cluster cannot be followed; "
                      "start the sweep there",
                      config_.file.string(), option));
  return slurm;
}

SweepConfig SweepReader::read() {
  const std::string file = config_.file.string();
  std::error_code error;
  std::ifstream stream(config_.file, std::ios::binary);
  if (!stream || std::filesystem::is_directory(config_.file, error))
    throw InputError(fmt::format("{}: cannot be read; give the path of a YAML file", file));
  const std::string content{std::istreambuf_iterator<char>(stream), {}};
  YAML::Node root;
  try {
    root = YAML::Load(content);
  } catch (const YAML::Exception& exception) {
    throw InputError(
        fmt::format("{}:{}: not valid YAML: {}", file, exception.mark.line + 1, exception.msg));
  }
  config_.name = config_.file.stem().string();
  read_section(
      root, "",
      {{"name", [&](const auto& node, const auto& key) { config_.name = text(node, key); }},
       {"run", [&](const auto& node, const auto& key) { config_.run = text(node, key); }},
       {"folder", [&](const auto& node, const auto& key) { config_.folder = text(node, key); }},
       {"axes", [&](const auto& node, const auto& key) { config_.axes = axes(node, key); }},
       {"points",
        [&](const auto& node, const auto& key) {
          if (!node.IsSequence() || node.size() == 0)
            fail(node, key, "expected a list of entries with a name");
          for (const YAML::Node& entry : node) config_.groups.push_back(group(entry));
        }},
       {"derived",
        [&](const auto& node, const auto& key) {
          read_section(node, key, {}, [&](const YAML::Node& value, const std::string& name) {
            config_.derived.push_back(derived(value, name));
          });
        }},
       {"seeds", [&](const auto& node, const auto& key) { config_.seeds = seeds(node, key); }},
       {"retries",
        [&](const auto& node, const auto& key) {
          config_.retries = static_cast<int>(number(node, key, 0, 100));
        }},
       {"evaluate",
        [&](const auto& section, const auto& name) {
          read_section(
              section, name,
              {{"data", [&](const auto& node,
                            const auto& key) { config_.evaluate.data = texts(node, key); }},
               {"tokens", [&](const auto& node, const auto& key) {
                  config_.evaluate.tokens = number(node, key, 0, std::int64_t{1} << 62);
                }}});
        }},
       {"bake",
        [&](const auto& node, const auto& key) {
          const std::string dtype = text(node, key);
          if (dtype == "false") return;
          try {
            row_type_of(dtype == "true" ? "fp32" : dtype);
          } catch (const InputError&) {
            fail(node, key,
                 fmt::format("expected false, true (fp32), fp32, bf16, fp16 or int8, found '{}'",
                             dtype));
          }
          config_.bake_dtype = dtype == "true" ? "fp32" : dtype;
        }},
       {"launcher", [&](const auto& section, const auto& name) {
          if (!section.IsMap() || section.size() != 1)
            fail(section, name, "expected one of local: {..} and slurm: {..}");
          read_section(
              section, name,
              {{"local", [&](const auto& node, const auto&) { config_.launcher = local(node); }},
               {"slurm", [&](const auto& node, const auto&) { config_.launcher = slurm(node); }}});
        }}});
  if (config_.run.empty())
    throw InputError(
        fmt::format("{}: run: missing; give the path of the base run configuration", file));
  if (config_.folder.empty())
    throw InputError(fmt::format("{}: folder: missing; say where the sweep's runs go", file));
  if (config_.groups.empty()) config_.groups.push_back({"", {}, {}, {}, file});
  return std::move(config_);
}

}  // namespace

int SweepConfig::ranks() const {
  if (const auto* local = std::get_if<LocalLauncher>(&launcher)) return local->ranks;
  const auto& slurm = std::get<SlurmLauncher>(launcher);
  return slurm.nodes * slurm.ntasks_per_node;
}

SweepConfig load_sweep_config(const std::filesystem::path& file) {
  return SweepReader(file).read();
}

}  // namespace scone
