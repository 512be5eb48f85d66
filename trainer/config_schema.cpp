#include "trainer/config_schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <set>
#include <string_view>
#include <type_traits>
#include <utility>

#include "data/size_suffix.h"
#include "parallel/error.h"

namespace scone {
namespace {

template <class Enum>
using Names = std::vector<std::pair<Enum, std::string>>;

const Names<NormKind>& names_of(NormKind) {
  static const Names<NormKind> names = {{NormKind::layernorm, "layernorm"},
                                        {NormKind::rmsnorm, "rmsnorm"}};
  return names;
}
const Names<PositionKind>& names_of(PositionKind) {
  static const Names<PositionKind> names = {{PositionKind::learned, "learned"},
                                            {PositionKind::rope, "rope"}};
  return names;
}
const Names<ActivationKind>& names_of(ActivationKind) {
  static const Names<ActivationKind> names = {{ActivationKind::gelu, "gelu"},
                                              {ActivationKind::swiglu, "swiglu"}};
  return names;
}
const Names<CombineKind>& names_of(CombineKind) {
  static const Names<CombineKind> names = {{CombineKind::replace, "replace"},
                                           {CombineKind::add, "add"}};
  return names;
}
const Names<FgramRecompute>& names_of(FgramRecompute) {
  static const Names<FgramRecompute> names = {{FgramRecompute::none, "none"},
                                              {FgramRecompute::chunk, "chunk"}};
  return names;
}
const Names<Recompute>& names_of(Recompute) {
  static const Names<Recompute> names = {
      {Recompute::none, "none"}, {Recompute::attention, "attention"}, {Recompute::block, "block"}};
  return names;
}
const Names<Schedule>& names_of(Schedule) {
  static const Names<Schedule> names = {
      {Schedule::cosine, "cosine"}, {Schedule::wsd, "wsd"}, {Schedule::constant, "constant"}};
  return names;
}
const Names<Transport>& names_of(Transport) {
  static const Names<Transport> names = {{Transport::mpi, "mpi"}, {Transport::nccl, "nccl"}};
  return names;
}
const Names<Device>& names_of(Device) {
  static const Names<Device> names = {{Device::cpu, "cpu"}, {Device::cuda, "cuda"}};
  return names;
}
const Names<DType>& names_of(DType) {
  static const Names<DType> names = {{DType::fp32, "fp32"}, {DType::bf16, "bf16"}};
  return names;
}
const Names<BadStep>& names_of(BadStep) {
  static const Names<BadStep> names = {{BadStep::skip, "skip"}, {BadStep::stop, "stop"}};
  return names;
}

/// What a node holds, for "found ..".
std::string found(const YAML::Node& node) {
  if (!node.IsDefined() || node.IsNull()) return "nothing";
  if (node.IsSequence()) return "a list";
  if (node.IsMap()) return "a section of keys";
  return "'" + node.Scalar() + "'";
}

[[noreturn]] void fail(const std::string& expected, const YAML::Node& node) {
  throw ConfigValueError(fmt::format("expected {}, found {}", expected, found(node)));
}

void parse_value(const YAML::Node& node, std::string& value) {
  if (node.IsNull()) throw ConfigValueError("expected text, found nothing; an empty text is \"\"");
  if (!node.IsScalar()) fail("text", node);
  value = node.Scalar();
}

void parse_value(const YAML::Node& node, bool& value) {
  if (!node.IsScalar() || (node.Scalar() != "true" && node.Scalar() != "false"))
    fail("true or false", node);
  value = node.Scalar() == "true";
}

void parse_value(const YAML::Node& node, std::int64_t& value) {
  const char* expected = "an integer";
  if (!node.IsScalar()) fail(expected, node);
  const std::string& text = node.Scalar();
  if (text.starts_with('-')) fail("an integer of at least 0", node);
  try {
    value = parse_size(text);
  } catch (const InputError&) {
    if (text.empty() || text[0] < '0' || text[0] > '9') fail(expected, node);
    fail("an integer, such as 8192, 512K (1000s) or 8Ki (1024s)", node);
  }
}

void parse_value(const YAML::Node& node, std::uint64_t& value) {
  std::int64_t number = 0;
  parse_value(node, number);
  value = static_cast<std::uint64_t>(number);
}

void parse_value(const YAML::Node& node, int& value) {
  std::int64_t number = 0;
  parse_value(node, number);
  if (number > std::numeric_limits<int>::max())
    fail(fmt::format("an integer of at most {}", std::numeric_limits<int>::max()), node);
  value = static_cast<int>(number);
}

void parse_value(const YAML::Node& node, double& value) {
  if (!node.IsScalar()) fail("a number", node);
  const std::string& text = node.Scalar();
  const char* end = text.data() + text.size();
  double number = 0;
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || stop != end || !std::isfinite(number)) fail("a number", node);
  value = number;
}

void parse_value(const YAML::Node& node, std::vector<double>& values) {
  if (!node.IsSequence()) fail("a list of numbers, such as [0.9, 0.95]", node);
  std::vector<double> parsed(node.size());
  for (std::size_t i = 0; i < node.size(); ++i) parse_value(node[i], parsed[i]);
  values = std::move(parsed);
}

void parse_value(const YAML::Node& node, std::vector<std::string>& values) {
  std::vector<std::string> parsed;
  if (node.IsSequence()) {
    for (const auto& element : node) parse_value(element, parsed.emplace_back());
  } else if (node.IsScalar()) {
    parsed.push_back(node.Scalar());
  } else {
    fail("a path or a list of paths", node);
  }
  if (std::find(parsed.begin(), parsed.end(), "") != parsed.end())
    throw ConfigValueError("expected a path or a list of paths, found an empty path");
  values = std::move(parsed);
}

template <class Enum>
requires std::is_enum_v<Enum>
void parse_value(const YAML::Node& node, Enum& value) {
  std::string expected;
  for (const auto& [candidate, name] : names_of(Enum{})) {
    if (node.IsScalar() && node.Scalar() == name) {
      value = candidate;
      return;
    }
    expected += (expected.empty() ? "one of " : ", ") + name;
  }
  fail(expected, node);
}

std::string print_value(const std::string& value) {
  const bool plain = !value.empty() && value != "null" && value != "Null" && value != "NULL" &&
                     value.find_first_not_of(
                         "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-") ==
                         std::string::npos &&
                     value[0] != '-' && value != "...";
  if (plain) return value;
  YAML::Emitter emitter;
  emitter << YAML::DoubleQuoted << value;
  return emitter.c_str();
}
std::string print_value(bool value) { return value ? "true" : "false"; }
std::string print_value(std::int64_t value) { return fmt::format("{}", value); }
std::string print_value(std::uint64_t value) { return fmt::format("{}", value); }
std::string print_value(int value) { return fmt::format("{}", value); }
std::string print_value(double value) { return fmt::format("{}", value); }

template <class Value>
std::string print_value(const std::vector<Value>& values) {
  std::string text = "[";
  for (const auto& value : values) text += (text.size() > 1 ? ", " : "") + print_value(value);
  return text + "]";
}

/// data.train: paths of one corpus, or corpora with their weights.
void parse_training_data(RunConfig& config, const YAML::Node& node) {
  const char* expected = "a path, a list of paths, or a list of {path: P, weight: W}";
  std::vector<std::string> paths;
  std::vector<double> weights;
  const bool weighted = node.IsSequence() && node.size() > 0 && node[0].IsMap();
  if (!weighted) {
    if (node.IsMap()) fail(expected, node);
    parse_value(node, paths);
  } else {
    for (const auto& element : node) {
      if (!element.IsMap() || element.size() != 2 || !element["path"] || !element["weight"])
        throw ConfigValueError(fmt::format(
            "expected {}, each with these two keys, found {} in it", expected,
            element.IsMap() ? fmt::format("{} keys, or others", element.size()) : found(element)));
      parse_value(element["path"], paths.emplace_back());
      parse_value(element["weight"], weights.emplace_back());
      if (paths.back().empty()) throw ConfigValueError("expected a path, found an empty one");
      if (!(weights.back() > 0))
        throw ConfigValueError(fmt::format("expected a weight above 0 for {}, found {}",
                                           paths.back(), weights.back()));
    }
  }
  config.data.train = std::move(paths);
  config.data.train_weights = std::move(weights);
}

template <class Enum>
requires std::is_enum_v<Enum> std::string print_value(Enum value) {
  for (const auto& [candidate, name] : names_of(value)) {
    if (candidate == value) return name;
  }
  return "?";
}

std::string print_training_data(const RunConfig& config) {
  if (config.data.train_weights.empty()) return print_value(config.data.train);
  std::string text = "[";
  for (std::size_t i = 0; i < config.data.train.size(); ++i)
    text += fmt::format("{}{{path: {}, weight: {}}}", i == 0 ? "" : ", ",
                        print_value(config.data.train[i]), config.data.train_weights[i]);
  return text + "]";
}

/// member(config) is a reference to the member that the key sets.
template <class Member>
ConfigField field(const char* key, const char* comment, Member member) {
  return {
      key, comment,
      [member](RunConfig& config, const YAML::Node& node) { parse_value(node, member(config)); },
      [member](const RunConfig& config) { return print_value(member(config)); }};
}

std::vector<ConfigField> make_fields() {
  std::vector<ConfigField> fields;
// Says each key once: the key is the member's path, but for the few that are named apart.
#define SCONE_FIELD(key, member, comment) \
  fields.push_back(field(                 \
      key, comment, [](auto& config) -> auto& { return config.member; }))
#define SCONE_KEY(member, comment) SCONE_FIELD(#member, member, comment)
  SCONE_KEY(run.folder, "config.yaml, metrics.jsonl, log.txt and checkpoints/ go here");
  SCONE_KEY(run.seed, "of the initial weights and of the data order");

  SCONE_KEY(run.time_limit, "seconds after which the run saves and leaves with 75; 0: none");

  fields.push_back({"data.train",
                    "token shards: files or folders; several {path, weight} are mixed",
                    parse_training_data, print_training_data});
  SCONE_KEY(data.validation, "token shards; empty: no evaluation");
  SCONE_KEY(data.prefetch, "batches made ahead, on a thread of their own");
  SCONE_KEY(data.attention_across_documents, "true: a sequence's documents see each other");

  SCONE_KEY(fgrams.vocabulary, "file of `scone fgrams`; needed where model.fgram.layers > 0");
  SCONE_KEY(fgrams.size, "use the first S f-grams; 0: all");
  SCONE_KEY(fgrams.max_length, "use f-grams of at most so many tokens; 0: as the file has them");

  SCONE_KEY(fgrams.share,
            "compute what matches share once; false: each by itself, the paper's way");

  SCONE_KEY(model.main.width, "d, of both models");
  SCONE_KEY(model.main.layers, "transformer blocks");
  SCONE_KEY(model.main.heads, "attention heads; they share the width");
  SCONE_KEY(model.main.ffw, "inner width of the feed-forward layers; default 4 * width");
  SCONE_KEY(model.main.context, "most positions of a sequence");
  SCONE_KEY(model.main.norm, "layernorm, rmsnorm");
  SCONE_KEY(model.main.position, "learned, rope");
  SCONE_KEY(model.main.activation, "gelu, swiglu");
  SCONE_KEY(model.main.bias, "biases of linear layers and of layernorms");
  SCONE_FIELD("model.main.tie_embeddings", model.tie_embeddings, "the head is the token embedding");

  SCONE_KEY(model.fgram.layers, "0: no f-gram model, the plain baseline");
  SCONE_KEY(model.fgram.heads, "this and the next five default to model.main's");
  SCONE_KEY(model.fgram.ffw, "inner width of the feed-forward layers");
  SCONE_KEY(model.fgram.norm, "layernorm, rmsnorm");
  SCONE_KEY(model.fgram.position, "learned, rope; over the tokens of an f-gram");
  SCONE_KEY(model.fgram.activation, "gelu, swiglu");
  SCONE_KEY(model.fgram.bias, "biases of linear layers and of layernorms");
  SCONE_FIELD("model.fgram.combine", model.combine,
              "replace, add: the f-gram's row in place of the token's, or their sum");
  SCONE_FIELD("model.fgram.recompute", model.fgram_recompute,
              "none, chunk: what the backward pass computes again");
  SCONE_FIELD("model.fgram.chunk_nodes", model.fgram_chunk_nodes,
              "trie nodes computed at once; bounds the memory");

  SCONE_KEY(parallel.communicator, "mpi, nccl: what gradients and activations travel by");
  SCONE_KEY(parallel.overlap, "reduce gradients while the backward pass goes on");
  SCONE_KEY(parallel.bucket_elements, "gradients reduced at a time");
  SCONE_KEY(parallel.timeout,
            "seconds that a rank waits for others before it ends the job; 0: for ever");
  SCONE_KEY(parallel.main.tp, "ranks that share a layer; data-parallel replicas: ranks / tp");
  SCONE_KEY(parallel.main.zero, "1: optimizer state cut over the replicas (ZeRO-1)");
  SCONE_KEY(parallel.main.sequence_parallel,
            "what lies between layers is cut by positions over tp");
  SCONE_KEY(parallel.fgram.tp, "the f-gram model's grid, on the same ranks");
  SCONE_KEY(parallel.fgram.zero, "1: optimizer state cut over the replicas (ZeRO-1)");
  SCONE_KEY(parallel.fgram.sequence_parallel, "what lies between layers is cut by nodes over tp");

  SCONE_KEY(compute.device, "cpu, cuda");
  SCONE_KEY(compute.dtype, "fp32, or bf16 (weights and activations; fp32 values in the optimizer)");
  SCONE_KEY(compute.threads,
            "of each rank; 0: OMP_NUM_THREADS, or its share of the cores it may use");
  SCONE_KEY(compute.recompute,
            "none, attention, block: what the main model's backward computes again");

  SCONE_KEY(optimizer.peak_lr, "AdamW's learning rate at the end of the warm-up");
  SCONE_KEY(optimizer.fgram_lr_ratio, "the f-gram model's learning rate over all else's");
  SCONE_KEY(optimizer.betas, "decay of the gradient's first and second moment");
  SCONE_KEY(optimizer.epsilon, "added to the root of the second moment");
  SCONE_KEY(optimizer.weight_decay, "of matrices");
  SCONE_KEY(optimizer.clip, "global gradient norm over both models; 0: none");
  SCONE_KEY(optimizer.schedule, "cosine, wsd, constant; after a linear warm-up");
  SCONE_KEY(optimizer.warmup_steps, "steps in which lr rises from 0");
  SCONE_KEY(optimizer.final_lr_ratio, "lr at the end over peak_lr");
  SCONE_KEY(optimizer.stochastic_rounding,
            "bf16: round weights at random, keeping their mean, not to the nearest");
  SCONE_KEY(optimizer.decay_fraction, "wsd: last share of the steps, in which lr falls");

  SCONE_KEY(trainer.steps, "of the whole run; 0: as tokens says");
  SCONE_KEY(trainer.tokens, "of the whole run; 0: as steps says");
  SCONE_KEY(trainer.batch_tokens, "of the global batch");
  SCONE_KEY(trainer.microbatch_tokens, "of a rank at a time; bounds the memory");
  SCONE_KEY(trainer.sequence_length, "tokens; at most model.main.context");
  SCONE_KEY(trainer.eval_every, "steps; 0: only at the end");
  SCONE_KEY(trainer.eval_tokens, "0: all of the validation data");
  SCONE_KEY(trainer.on_bad_step, "skip, stop: where loss or gradient is not finite, or far off");
  SCONE_KEY(trainer.bad_step_sigma,
            "far off: so many standard deviations above the window's mean; 0: never");
  SCONE_KEY(trainer.bad_step_window, "steps that a step is compared with");
  SCONE_KEY(trainer.bad_steps_in_a_row, "so many end the run");

  SCONE_KEY(checkpoint.every, "steps; 0: only at the end");
  SCONE_KEY(checkpoint.keep, "newest ones that stay; 0: all");
  SCONE_KEY(checkpoint.permanent_every, "steps; checkpoints of these multiples stay; 0: none");
  SCONE_KEY(checkpoint.async, "written while training goes on");
  SCONE_KEY(checkpoint.check_replicas, "save only where ranks that hold the same parameters agree");

  SCONE_KEY(logging.every, "steps between lines on the terminal");
  SCONE_KEY(logging.metrics, "in run.folder; one JSON object a step");
  SCONE_KEY(logging.tensorboard, "the same numbers for TensorBoard, in run.folder/tensorboard");
#undef SCONE_KEY
#undef SCONE_FIELD
  return fields;
}

/// Levenshtein distance.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0U : 1U);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

const std::vector<ConfigField>& config_fields() {
  static const std::vector<ConfigField> fields = make_fields();
  return fields;
}

const ConfigField* find_config_field(const std::string& key) {
  const auto& fields = config_fields();
  const auto at = std::find_if(fields.begin(), fields.end(),
                               [&](const ConfigField& field) { return field.key == key; });
  return at == fields.end() ? nullptr : &*at;
}

const std::string& nearest_name(const std::string& name, const std::vector<std::string>& names) {
  return *std::min_element(names.begin(), names.end(), [&](const auto& a, const auto& b) {
    return edit_distance(name, a) < edit_distance(name, b);
  });
}

std::string nearest_config_key(const std::string& key) {
  std::set<std::string> candidates;
  for (const ConfigField& field : config_fields()) {
    candidates.insert(field.key);
    for (auto dot = field.key.find('.'); dot != std::string::npos;
         dot = field.key.find('.', dot + 1)) {
      const std::string section = field.key.substr(0, dot);
      if (!key.starts_with(section + ".")) candidates.insert(section);  // else it holds the key
    }
  }
  // A key at the wrong place, or the end of a longer name (lr for peak_lr), is nearer to its
  // namesake than to a like-spelled neighbour.
  const auto end = key.rfind('.');
  const std::string prefix = end == std::string::npos ? "" : key.substr(0, end + 1);
  const std::string last = key.substr(prefix.size());
  auto distance = [&](const std::string& candidate) {
    const std::size_t whole = edit_distance(key, candidate);
    const bool namesake = candidate.ends_with("." + last) ||
                          (candidate.starts_with(prefix) && candidate.ends_with("_" + last));
    return std::pair(namesake ? std::min<std::size_t>(whole, 2) : whole, whole);
  };
  return *std::min_element(
      candidates.begin(), candidates.end(),
      [&](const std::string& a, const std::string& b) { return distance(a) < distance(b); });
}

}  // namespace scone
