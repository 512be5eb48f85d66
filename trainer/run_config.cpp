#include "trainer/run_config.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <numeric>
#include <sstream>

#include "parallel/error.h"
#include "trainer/built_with.h"
#include "trainer/config_schema.h"

namespace scone {
namespace {

constexpr int most_threads = 1024;
constexpr std::int64_t most_prefetch = 1024;  // batches

/// Reads the keys that a file and overrides give, and remembers where each was given.
class ConfigReader {
 public:
  explicit ConfigReader(std::string file) : file_(std::move(file)) {}

  void read_file();
  void read_override(const std::string& text);
  bool given(const std::string& key) const { return places_.contains(key); }

  /// Throws InputError about `key`, naming where it was given.
  [[noreturn]] void fail(const std::string& key, const std::string& what) const {
    const auto at = places_.find(key);
    throw InputError(
        fmt::format("{}: {}: {}", at == places_.end() ? file_ : at->second, key, what));
  }

  RunConfig config;

 private:
  std::string place(const YAML::Mark& mark) const {
    return mark.is_null() ? file_ : fmt::format("{}:{}", file_, mark.line + 1);
  }
  void read_section(const YAML::Node& section, const std::string& prefix);
  void set(const ConfigField& field, const YAML::Node& value, const std::string& where);

  std::string file_;
  std::map<std::string, int> lines_;           // of keys in the file, to find one given twice
  std::map<std::string, std::string> places_;  // key -> "file:line" or the command line
};

bool is_section(const std::string& key) {
  return std::any_of(config_fields().begin(), config_fields().end(),
                     [&](const ConfigField& field) { return field.key.starts_with(key + "."); });
}

void ConfigReader::set(const ConfigField& field, const YAML::Node& value,
                       const std::string& where) {
  try {
    field.parse(config, value);
  } catch (const ConfigValueError& error) {
    throw InputError(fmt::format("{}: {}: {}", where, field.key, error.what()));
  }
  places_[field.key] = where;
}

void ConfigReader::read_section(const YAML::Node& section, const std::string& prefix) {
  for (const auto& entry : section) {
    const std::string where = place(entry.first.Mark());
    if (!entry.first.IsScalar())
      throw InputError(fmt::format("{}: expected a key, found a list or section", where));
    const std::string key = prefix + entry.first.Scalar();
    const auto [first, is_new] = lines_.emplace(key, entry.first.Mark().line + 1);
    if (!is_new)
      throw InputError(fmt::format("{}: {}: given twice, first in line {}; remove one", where, key,
                                   first->second));
    if (const ConfigField* field = find_config_field(key)) {
      const YAML::Mark mark = entry.second.Mark();
      set(*field, entry.second, entry.second.IsNull() ? where : place(mark));
    } else if (is_section(key)) {
      if (!entry.second.IsMap() && !entry.second.IsNull())
        throw InputError(fmt::format("{}: {}: expected a section of keys, found a {}", where, key,
                                     entry.second.IsSequence() ? "list" : "value"));
      if (entry.second.IsMap()) read_section(entry.second, key + ".");
    } else {
      throw InputError(fmt::format("{}: {}: unknown key; the nearest valid key is {}", where, key,
                                   nearest_config_key(key)));
    }
  }
}

void ConfigReader::read_file() {
  std::error_code error;
  std::ifstream stream(file_, std::ios::binary);
  if (!stream || std::filesystem::is_directory(file_, error))
    throw InputError(fmt::format("{}: cannot be read; give the path of a YAML file", file_));
  const std::string text{std::istreambuf_iterator<char>(stream), {}};
  std::vector<YAML::Node> documents;
  try {
    documents = YAML::LoadAll(text);
  } catch (const YAML::Exception& exception) {
    throw InputError(fmt::format("{}: not valid YAML: {}", place(exception.mark), exception.msg));
  }
  if (documents.size() > 1)
    throw InputError(fmt::format("{}: a second document, after ---, would not be read; remove it",
                                 place(documents[1].Mark())));
  const YAML::Node root = documents.empty() ? YAML::Node() : documents.front();
  if (!root.IsMap())
    throw InputError(fmt::format("{}: expected sections of keys (run, data, model, ..), found {}",
                                 file_, root.IsNull() ? "an empty file" : "something else"));
  read_section(root, "");
}

void ConfigReader::read_override(const std::string& text) {
  const std::string where = "command line";
  const auto equals = text.find('=');
  if (equals == std::string::npos || equals == 0)
    throw InputError(
        fmt::format("{}: '{}': expected key=value, such as trainer.steps=100", where, text));
  const std::string key = text.substr(0, equals);
  const ConfigField* field = find_config_field(key);
  if (field == nullptr)
    throw InputError(is_section(key)
                         ? fmt::format("{}: {}: a section; set its keys one by one", where, key)
                         : fmt::format("{}: {}: unknown key; the nearest valid key is {}", where,
                                       key, nearest_config_key(key)));
  YAML::Node value;
  try {
    value = YAML::Load(text.substr(equals + 1));
  } catch (const YAML::Exception& exception) {
    throw InputError(fmt::format("{}: {}: not valid YAML: {}", where, key, exception.msg));
  }
  set(*field, value, where);
}

/// Throws where a key is wanted and was not given.
void require(const ConfigReader& reader, const std::string& file) {
  std::string missing;
  for (const char* key : {"run.folder", "data.train", "model.main.width", "model.main.layers",
                          "model.main.heads", "model.main.context", "trainer.batch_tokens"}) {
    if (!reader.given(key)) missing += (missing.empty() ? "" : ", ") + std::string(key);
  }
  if (!missing.empty())
    throw InputError(fmt::format("{}: required keys are missing: {}", file, missing));
}

/// Gives the keys that were left out the values that follow from others.
void resolve(const ConfigReader& reader, RunConfig& config, int ranks) {
  TransformerConfig& main = config.model.main;
  TransformerConfig& fgram = config.model.fgram;
  if (!reader.given("model.main.ffw")) main.ffw = 4 * main.width;
  fgram.width = main.width;
  fgram.context = 0;  // the vocabulary's longest f-gram, known when it is opened
  if (!reader.given("model.fgram.heads")) fgram.heads = main.heads;
  if (!reader.given("model.fgram.ffw")) fgram.ffw = main.ffw;
  if (!reader.given("model.fgram.norm")) fgram.norm = main.norm;
  if (!reader.given("model.fgram.position")) fgram.position = main.position;
  if (!reader.given("model.fgram.activation")) fgram.activation = main.activation;
  if (!reader.given("model.fgram.bias")) fgram.bias = main.bias;
  auto& trainer = config.trainer;
  if (trainer.sequence_length == 0) trainer.sequence_length = main.context;
  if (trainer.microbatch_tokens == 0 && trainer.sequence_length > 0) {
    const std::int64_t sequences = trainer.batch_tokens / trainer.sequence_length;
    const std::int64_t replicas = std::max(1, ranks / std::max(1, config.parallel.main.tp));
    const std::int64_t share = (sequences + replicas - 1) / replicas;
    trainer.microbatch_tokens = trainer.sequence_length * std::clamp<std::int64_t>(share, 1, 8);
  }
}

void check_compute(const ConfigReader& reader, RunsOn runs_on) {
  const RunConfig& config = reader.config;
  const auto refuse = [&](bool refused, const char* key, const char* message) {
    if (refused) reader.fail(key, message);
  };
  const bool here = runs_on == RunsOn::this_build;
  const bool cuda = config.compute.device == Device::cuda;
  const bool bf16 = config.compute.dtype == DType::bf16;
  const bool nccl = config.parallel.communicator == Transport::nccl;
  refuse(here && cuda && !built_with_cuda(), "compute.device",
         "this build has no CUDA; use cpu, or build with -DSCONE_CUDA=ON where nvcc is");
  refuse(nccl && !cuda, "parallel.communicator", "nccl needs compute.device cuda; use mpi");
  refuse(here && nccl && !built_with_nccl(), "parallel.communicator",
         "this build has no NCCL; use mpi, or build where nccl.h is");
  refuse(config.optimizer.stochastic_rounding && !bf16, "optimizer.stochastic_rounding",
         "rounds weights to bf16, but compute.dtype is fp32; use false");
}

/// "2 and 4", the values nearest to `value` that divide both numbers.
std::string nearest_divisors(int value, std::int64_t a, std::int64_t b) {
  const auto divides = [&](std::int64_t d) { return a % d == 0 && b % d == 0; };
  const std::int64_t most = std::min(a, b);
  std::int64_t below = std::min<std::int64_t>(value, most), above = value;
  while (!divides(below)) --below;
  while (above <= most && !divides(above)) ++above;
  return above > most ? fmt::format("value is {}", below)
                      : fmt::format("values are {} and {}", below, above);
}

void check_grid(const ConfigReader& reader, const std::string& name, const GridConfig& grid,
                const TransformerConfig& model, int ranks) {
  const std::string key = "parallel." + name + ".tp";
  if (grid.tp < 1) reader.fail(key, fmt::format("expected at least 1, found {}", grid.tp));
  const auto require = [&](std::int64_t extent, const std::string& what) {
    if (extent % grid.tp != 0)
      reader.fail(key,
                  fmt::format("{} does not divide {}; the nearest valid {}", grid.tp, what,
                              nearest_divisors(grid.tp, ranks, std::gcd(model.heads, model.ffw))));
  };
  require(ranks, fmt::format("the {} ranks", ranks));
  require(model.heads, fmt::format("model.{}.heads {}", name, model.heads));
  require(model.ffw, fmt::format("model.{}.ffw {}", name, model.ffw));
  if (grid.zero > 1)
    reader.fail("parallel." + name + ".zero", fmt::format("expected 0 or 1, found {}", grid.zero));
}

void check_transformer(const ConfigReader& reader, const std::string& prefix,
                       const TransformerConfig& model) {
  auto check_size = [&](const char* key, std::int64_t value, std::int64_t most) {
    if (value < 1) reader.fail(prefix + key, fmt::format("expected at least 1, found {}", value));
    if (value > most)
      reader.fail(prefix + key, fmt::format("expected at most {}, found {}", most, value));
  };
  check_size("width", model.width, kMostWidth);
  check_size("layers", model.layers, kMostLayers);
  check_size("heads", model.heads, kMostWidth);
  check_size("ffw", model.ffw, kMostWidth);
  if (model.width % model.heads != 0)
    reader.fail(prefix + "heads",
                fmt::format("{} heads do not divide model.main.width {}; give a divisor of it",
                            model.heads, model.width));
  const std::int64_t head_width = model.width / model.heads;
  if (model.position == PositionKind::rope && head_width % 2 != 0)
    reader.fail(prefix + "position",
                fmt::format("rope needs an even width of a head, found {} (model.main.width {} / "
                            "{} heads); change the heads, or use learned",
                            head_width, model.width, model.heads));
}

/// Fails unless `value` is a multiple of sequence_length, naming the nearest ones.
void check_multiple(const ConfigReader& reader, const std::string& key, std::int64_t value) {
  const std::int64_t length = reader.config.trainer.sequence_length;
  if (value >= length && value % length == 0) return;
  const std::int64_t below = value / length * length;
  const std::string nearest = below == 0
                                  ? fmt::format("the nearest is {}", length)
                                  : fmt::format("the nearest are {} and {}", below, below + length);
  reader.fail(key, fmt::format("expected a multiple of trainer.sequence_length {}, found {}; {}",
                               length, value, nearest));
}

void check_trainer(const ConfigReader& reader, int ranks) {
  const auto& trainer = reader.config.trainer;
  const std::int64_t context = reader.config.model.main.context;
  if (context < 1) reader.fail("model.main.context", "expected at least 1, found 0");
  if (context > kMostContext)
    reader.fail("model.main.context",
                fmt::format("expected at most {}, found {}", kMostContext, context));
  if ((trainer.steps > 0) == (trainer.tokens > 0))
    reader.fail(trainer.steps > 0 ? "trainer.tokens" : "trainer.steps",
                fmt::format("expected one of trainer.steps and trainer.tokens, found {}; {}",
                            trainer.steps > 0 ? "both" : "neither",
                            trainer.steps > 0 ? "set the other to 0" : "give one"));
  if (trainer.sequence_length > context)
    reader.fail("trainer.sequence_length",
                fmt::format("{} is longer than model.main.context {}; make it shorter, or the "
                            "context longer",
                            trainer.sequence_length, context));
  check_multiple(reader, "trainer.batch_tokens", trainer.batch_tokens);
  check_multiple(reader, "trainer.microbatch_tokens", trainer.microbatch_tokens);
  const std::int64_t sequences = trainer.batch_tokens / trainer.sequence_length;
  const int replicas = ranks / reader.config.parallel.main.tp;
  if (sequences < replicas)
    reader.fail(
        "trainer.batch_tokens",
        fmt::format("{} tokens are {} sequences of {} for {} data-parallel ranks ({} ranks "
                    "/ parallel.main.tp {}); give at least {} tokens, a larger tp, or use "
                    "fewer ranks",
                    trainer.batch_tokens, sequences, trainer.sequence_length, replicas, ranks,
                    reader.config.parallel.main.tp, replicas * trainer.sequence_length));
}

void check_optimizer(const ConfigReader& reader) {
  const auto& optimizer = reader.config.optimizer;
  auto check = [&](bool good, const char* name, const char* expected, const std::string& value) {
    if (!good)
      reader.fail(std::string("optimizer.") + name,
                  fmt::format("expected {}, found {}", expected, value));
  };
  auto text = [](double value) { return fmt::format("{}", value); };
  check(optimizer.peak_lr > 0, "peak_lr", "a number above 0", text(optimizer.peak_lr));
  check(optimizer.fgram_lr_ratio > 0, "fgram_lr_ratio", "a number above 0",
        text(optimizer.fgram_lr_ratio));
  check(optimizer.betas.size() == 2 &&
            std::all_of(optimizer.betas.begin(), optimizer.betas.end(),
                        [](double beta) { return beta >= 0 && static_cast<float>(beta) < 1; }),
        "betas", "two numbers of at least 0 and below 1",
        find_config_field("optimizer.betas")->print(reader.config));
  check(optimizer.epsilon > 0, "epsilon", "a number above 0", text(optimizer.epsilon));
  check(optimizer.weight_decay >= 0, "weight_decay", "at least 0", text(optimizer.weight_decay));
  check(optimizer.clip >= 0, "clip", "at least 0", text(optimizer.clip));
  check(optimizer.final_lr_ratio >= 0 && optimizer.final_lr_ratio <= 1, "final_lr_ratio",
        "a number from 0 to 1", text(optimizer.final_lr_ratio));
  check(optimizer.decay_fraction >= 0 && optimizer.decay_fraction <= 1, "decay_fraction",
        "a number from 0 to 1", text(optimizer.decay_fraction));
}

/// The metrics are a file of run.folder beside the run's others, which they must not replace.
void check_metrics_name(const ConfigReader& reader) {
  const std::string& name = reader.config.logging.metrics;
  const bool is_name = !name.empty() && name != "." && name != ".." &&
                       name.find('/') == std::string::npos &&
                       std::none_of(name.begin(), name.end(),
                                    [](char c) { return static_cast<unsigned char>(c) < ' '; });
  if (!is_name)
    reader.fail("logging.metrics",
                fmt::format("expected the name of a file in run.folder, such as metrics.jsonl, "
                            "found '{}'",
                            name));
  static const std::vector<std::string> taken = {"config.yaml", "config.yaml.new", "log.txt",
                                                 "checkpoints", ".lock",           ".writable",
                                                 "report.html", "tensorboard"};
  if (std::find(taken.begin(), taken.end(), name) != taken.end())
    reader.fail(
        "logging.metrics",
        fmt::format("'{}' is another file of the run's folder; give a name of its own, such "
                    "as metrics.jsonl",
                    name));
}

void validate(const ConfigReader& reader, int ranks, RunsOn runs_on) {
  const RunConfig& config = reader.config;
  check_compute(reader, runs_on);
  if (config.run.folder.empty()) reader.fail("run.folder", "expected a path, found ''");
  if (config.data.train.empty())
    reader.fail("data.train", "expected a path or a list of paths, found an empty list");
  check_transformer(reader, "model.main.", config.model.main);
  const bool has_fgrams = config.model.fgram.layers > 0;
  if (has_fgrams) check_transformer(reader, "model.fgram.", config.model.fgram);
  check_grid(reader, "main", config.parallel.main, config.model.main, ranks);
  // A baseline's f-gram grid is made of the same ranks, though nothing runs on it.
  check_grid(reader, "fgram", config.parallel.fgram,
             has_fgrams ? config.model.fgram : config.model.main, ranks);
  if (has_fgrams && config.fgrams.vocabulary.empty())
    reader.fail("fgrams.vocabulary",
                fmt::format("needed where model.fgram.layers is {}; give a file of `scone fgrams`, "
                            "or set the layers to 0",
                            config.model.fgram.layers));
  if (!has_fgrams && !config.fgrams.vocabulary.empty())
    reader.fail("fgrams.vocabulary",
                fmt::format("'{}' is given, but model.fgram.layers is 0; give the f-gram model "
                            "layers, or leave the vocabulary out",
                            config.fgrams.vocabulary));
  if (!config.fgrams.share && config.parallel.fgram.tp > 1)
    reader.fail("fgrams.share",
                fmt::format("false needs parallel.fgram.tp 1, found {}", config.parallel.fgram.tp));
  if (config.fgrams.max_length == 1)
    reader.fail("fgrams.max_length", "expected 0 or at least 2, found 1");
  auto at_least_one = [&](const char* key, std::int64_t value) {
    if (value < 1) reader.fail(key, fmt::format("expected at least 1, found {}", value));
  };
  at_least_one("model.fgram.chunk_nodes", config.model.fgram_chunk_nodes);
  at_least_one("data.prefetch", config.data.prefetch);
  if (config.data.prefetch > most_prefetch)
    reader.fail("data.prefetch", fmt::format("expected at most {} batches, found {}", most_prefetch,
                                             config.data.prefetch));
  at_least_one("parallel.bucket_elements", config.parallel.bucket_elements);
  if (config.parallel.timeout < 0)
    reader.fail("parallel.timeout",
                fmt::format("expected at least 0, found {}", config.parallel.timeout));
  if (config.compute.threads > most_threads)
    reader.fail("compute.threads",
                fmt::format("expected at most {} (0: a share of the cores), found "
                            "{}",
                            most_threads, config.compute.threads));
  at_least_one("logging.every", config.logging.every);
  if (config.trainer.bad_step_window < 2)  // one step has no deviation: nothing would be far off
    reader.fail("trainer.bad_step_window",
                fmt::format("expected at least 2, found {}", config.trainer.bad_step_window));
  at_least_one("trainer.bad_steps_in_a_row", config.trainer.bad_steps_in_a_row);
  const auto at_least_zero = [&](const char* key, double value) {
    if (value < 0) reader.fail(key, fmt::format("expected at least 0, found {}", value));
  };
  at_least_zero("trainer.bad_step_sigma", config.trainer.bad_step_sigma);
  at_least_zero("run.time_limit", config.run.time_limit);
  check_metrics_name(reader);
  check_optimizer(reader);
  check_trainer(reader, ranks);
}

}  // namespace

std::int64_t RunConfig::total_steps() const {
  if (trainer.steps > 0) return trainer.steps;
  return trainer.tokens / trainer.batch_tokens + (trainer.tokens % trainer.batch_tokens != 0);
}

RunConfig load_run_config(const std::filesystem::path& file,
                          const std::vector<std::string>& overrides, int ranks, RunsOn runs_on) {
  ConfigReader reader(file.string());
  reader.read_file();
  for (const std::string& text : overrides) reader.read_override(text);
  require(reader, file.string());
  resolve(reader, reader.config, ranks);
  validate(reader, ranks, runs_on);
  return reader.config;
}

std::string to_yaml(const RunConfig& config) {
  constexpr std::size_t comment_column = 36;
  std::ostringstream yaml;
  std::vector<std::string> open;  // sections that the line above is in
  for (const ConfigField& field : config_fields()) {
    std::vector<std::string> parts;
    std::istringstream key(field.key);
    for (std::string part; std::getline(key, part, '.');) parts.push_back(part);
    const std::string name = parts.back();
    parts.pop_back();
    std::size_t same = 0;
    while (same < std::min(parts.size(), open.size()) && parts[same] == open[same]) ++same;
    for (std::size_t depth = same; depth < parts.size(); ++depth) {
      if (depth == 0 && !open.empty()) yaml << '\n';
      yaml << std::string(2 * depth, ' ') << parts[depth] << ":\n";
    }
    const std::string line = std::string(2 * parts.size(), ' ') + name + ": " + field.print(config);
    yaml << line << std::string(std::max(comment_column, line.size() + 2) - line.size(), ' ')
         << "# " << field.comment << '\n';
    open = std::move(parts);
  }
  return yaml.str();
}

}  // namespace scone
