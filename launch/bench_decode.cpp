#include "launch/bench_decode.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/bundle.h"
#include "checkpoint/table_matcher.h"
#include "data/size_suffix.h"
#include "launch/bench_data.h"
#include "launch/decode_text.h"
#include "launch/option_checks.h"
#include "model/main_model.h"
#include "model/ops/ops.h"
#include "parallel/error.h"
#include "trainer/fgram_rows.h"

namespace scone {
namespace {

using Clock = std::chrono::steady_clock;

struct NamedShape {
  const char* name;
  std::int64_t width, layers, heads, context, vocabulary;
};
constexpr NamedShape kShapes[] = {{"tiny", 64, 2, 2, 128, 512},
                                  {"small", 512, 6, 8, 512, 16384},
                                  {"gpt2-124m", 768, 12, 12, 1024, 50257}};

struct Arguments {
  std::string shape = "small", rows = "200K", dtype = "bf16", cache = "0", folder;
  std::vector<std::int64_t> batches = {1, 4, 16};
  std::vector<std::string> access = {"ram", "mmap", "direct"};
  std::int64_t prompt = 64, tokens = 32;
  int max_length = 5;
  double share = 0.8;
  int rounds = 5;
};

ModelConfig config_of(const std::string& name) {
  std::string names;
  for (const NamedShape& shape : kShapes) {
    names += (names.empty() ? "" : ", ") + std::string(shape.name);
    if (name != shape.name) continue;
    ModelConfig config;
    config.vocabulary_size = shape.vocabulary;
    config.main = {.width = shape.width,
                   .layers = shape.layers,
                   .heads = shape.heads,
                   .ffw = 4 * shape.width,
                   .context = shape.context};
    config.fgram = config.main;
    return config;
  }
  throw InputError(fmt::format("--shape: '{}' is not one of {}", name, names));
}

/// What FgramTable opens: bundle.json, the index, and rows of random numbers.
void write_table(const std::filesystem::path& folder, const FgramText& fgrams,
                 const ModelConfig& config, const TableLayout& layout, int max_length) {
  std::filesystem::create_directories(folder / "table");
  TableIndex::write(folder / kTableIndexFile,
                    {.rows = layout.rows,
                     .max_length = max_length,
                     .token_vocabulary_size = config.vocabulary_size,
                     .fgrams = layout.fgrams},
                    [&](std::int64_t id) { return fgrams.key(id); });
  std::mt19937 random(2);
  std::vector<float> row(static_cast<std::size_t>(layout.width));
  std::vector<std::byte> record(static_cast<std::size_t>(layout.bytes_of_record()));
  for (std::int64_t file = 0; file < layout.files(); ++file) {
    const auto path = folder / table_file_name(file);
    std::ofstream out(path, std::ios::binary);
    out << table_file_header(layout, file);
    for (std::int64_t i = 0; i < layout.rows_of_file(file); ++i) {
      for (float& value : row) value = static_cast<float>(random() % 2048) / 51200.0F - 0.02F;
      encode_row(layout.type, row, record.data());
      out.write(reinterpret_cast<const char*>(record.data()), std::ssize(record));
    }
    if (!out.flush())
      throw std::runtime_error(
          fmt::format("{}: cannot be written; is the disk full? --folder "
                      "names another",
                      path.string()));
  }
  std::ofstream(folder / "bundle.json") << nlohmann::json{
      {"format", kBundleFormat},
      {"format_version", kBundleVersion},
      {"table", describe_table(layout)},
      {"fgrams",
       {{"size", layout.rows}, {"max_length", max_length}, {"fingerprint", layout.fgrams}}}};
}

/// One way to decode: the main model alone, or with rows of a table.
struct Variant {
  std::string name;
  std::unique_ptr<FgramTable> table;  // null: none
  std::unique_ptr<TableMatcher> matcher;
  std::unique_ptr<TableSource> source;
  FgramRows rows;
  std::vector<KeyValueCache> caches;
  std::vector<std::vector<float>> logits;
  double seconds = 0;  // of the steps of a round

  Variant(std::string variant, std::unique_ptr<FgramTable> opened) : name(std::move(variant)) {
    if (!opened) return;
    table = std::move(opened);
    matcher = std::make_unique<TableMatcher>(table->index(), "");
    source = std::make_unique<TableSource>(*table, cpu_backend());
  }
};

class DecodeBench {
 public:
  DecodeBench(const Arguments& arguments, const ModelConfig& config)
      : arguments_(arguments),
        config_(config),
        parameters_(main_parameter_specs(config), Device::cpu, false) {
    parameters_.initialise(1, cpu_backend());
    model_ = std::make_unique<MainModel>(
        config, parameters_, cpu_backend(),
        MainModelOptions{.max_positions = std::max(config.main.context, largest_batch())});
  }

  void add(Variant variant) { variants_.push_back(std::move(variant)); }

  /// Decodes the same texts with all variants, in turns step by step.
  nlohmann::json run(const std::vector<std::vector<std::int32_t>>& texts) {
    for (Variant& variant : variants_) {
      variant.caches.clear();
      variant.logits.assign(texts.size(),
                            std::vector<float>(static_cast<std::size_t>(config_.vocabulary_size)));
      for (std::size_t i = 0; i < texts.size(); ++i)
        variant.caches.emplace_back(config_.main, Device::cpu, DType::fp32, length());
    }
    std::vector<std::vector<double>> milliseconds(variants_.size()), ratios(variants_.size());
    matched_ = 0;
    for (int round = -1; round < arguments_.rounds; ++round) {  // the first one warms up
      run_round(texts);
      if (round < 0) continue;
      for (std::size_t v = 0; v < variants_.size(); ++v) {
        milliseconds[v].push_back(1e3 * variants_[v].seconds /
                                  static_cast<double>(arguments_.tokens));
        ratios[v].push_back(variants_[v].seconds / variants_[0].seconds);
      }
    }
    nlohmann::json result = nlohmann::json::array();
    for (std::size_t v = 0; v < variants_.size(); ++v)
      result.push_back({{"variant", variants_[v].name},
                        {"batch", texts.size()},
                        {"milliseconds_per_token", median_of(milliseconds[v])},
                        {"ratio", median_of(ratios[v])}});
    return result;
  }

  /// Of the positions of the last run that were looked up.
  double matched_share() const {
    return static_cast<double>(matched_) / static_cast<double>(looked_up_);
  }

 private:
  std::int64_t length() const { return arguments_.prompt + arguments_.tokens; }
  std::int64_t largest_batch() const {
    return *std::max_element(arguments_.batches.begin(), arguments_.batches.end());
  }

  /// Tokens begin .. end - 1 of each text.
  void decode(Variant& variant, const std::vector<std::vector<std::int32_t>>& texts,
              std::size_t begin, std::size_t end) {
    std::vector<FgramPiece> pieces;
    for (const auto& text : texts) pieces.push_back({std::span(text).first(end), begin});
    variant.rows.look_up(pieces, variant.matcher.get(), variant.source.get(), config_.main.width,
                         Device::cpu);
    std::vector<DecodeSequence> sequences;
    const std::size_t count = end - begin;
    for (std::size_t i = 0; i < texts.size(); ++i)
      sequences.push_back({&variant.caches[i], std::span(texts[i]).subspan(begin, count),
                           variant.rows.row_of_position().subspan(i * count, count),
                           variant.logits[i]});
    model_->decode(sequences, variant.rows.rows());
  }

  void run_round(const std::vector<std::vector<std::int32_t>>& texts) {
    const auto prompt = static_cast<std::size_t>(arguments_.prompt);
    for (Variant& variant : variants_) {
      for (KeyValueCache& cache : variant.caches) cache.clear();
      decode(variant, texts, 0, prompt);
      variant.seconds = 0;
    }
    matched_ = looked_up_ = 0;
    const auto steps = static_cast<std::size_t>(arguments_.tokens);
    for (std::size_t step = 0; step < steps; ++step) {
      for (std::size_t turn = 0; turn < variants_.size(); ++turn) {
        Variant& variant = variants_[(turn + step) % variants_.size()];
        const auto start = Clock::now();
        decode(variant, texts, prompt + step, prompt + step + 1);
        variant.seconds += std::chrono::duration<double>(Clock::now() - start).count();
      }
      for (const std::int32_t row : variants_.back().rows.row_of_position()) {
        ++looked_up_;
        if (row >= 0) ++matched_;
      }
    }
    for (std::size_t v = 2; v < variants_.size(); ++v)
      if (variants_[v].logits != variants_[1].logits)
        throw std::runtime_error(fmt::format("the rows of {} and {} give other logits",
                                             variants_[v].name, variants_[1].name));
  }

  const Arguments& arguments_;
  const ModelConfig& config_;
  ParameterSet parameters_;
  std::unique_ptr<MainModel> model_;
  std::vector<Variant> variants_;
  std::int64_t matched_ = 0, looked_up_ = 0;
};

int run_decode(const Arguments& arguments, CommandContext& context) {
  if (context.world.size() > 1)
    throw InputError("bench decode measures one rank; run it without mpirun");
  const ModelConfig config = config_of(arguments.shape);
  if (arguments.prompt + arguments.tokens > config.main.context)
    throw InputError(fmt::format("--prompt {} and --tokens {}: more than the context {} of {}",
                                 arguments.prompt, arguments.tokens, config.main.context,
                                 arguments.shape));
  const std::int64_t rows = parse_size_option("--rows", arguments.rows);
  const BenchFolder folder(arguments.folder);
  FgramText fgrams(config.vocabulary_size, rows, arguments.max_length, 1);
  const TableLayout layout = make_table_layout(row_type_of(arguments.dtype), config.main.width,
                                               rows, std::int64_t{1} << 30, "random f-grams");
  write_table(folder.path(), fgrams, config, layout, arguments.max_length);
  DecodeBench bench(arguments, config);
  bench.add({"main model alone", nullptr});
  for (const std::string& name : arguments.access) {
    auto table = std::make_unique<FgramTable>(
        folder.path(),
        RowSourceOptions{.access = table_access_of(name),
                         .cache_bytes = parse_size_option("--cache", arguments.cache)});
    if (!table->fallback().empty())
      throw InputError(
          fmt::format("--access {}: {}; leave it out, or give --folder on another "
                      "file system",
                      name, table->fallback()));
    bench.add({name, std::move(table)});
  }
  print_bench_line(context,
                   fmt::format("{}: width {}, {} layers; {} rows of {} {}, {:.0f} MB; {} "
                               "threads",
                               arguments.shape, config.main.width, config.main.layers, rows,
                               config.main.width, arguments.dtype,
                               static_cast<double>(layout.bytes()) / 1e6, omp_get_max_threads()));
  print_bench_line(context, fmt::format("{:>5} {:<18} {:>9} {:>7} {:>8}", "batch", "rows",
                                        "ms/token", "ratio", "matched"));
  nlohmann::json all = nlohmann::json::array();
  for (const std::int64_t batch : arguments.batches) {
    std::vector<std::vector<std::int32_t>> texts;
    for (std::int64_t i = 0; i < batch; ++i)
      texts.push_back(fgrams.text(arguments.prompt + arguments.tokens, arguments.share));
    for (nlohmann::json& line : bench.run(texts)) {
      line["matched_share"] = bench.matched_share();
      print_bench_line(context,
                       fmt::format("{:>5} {:<18} {:>9.3f} {:>7.3f} {:>7.0f}%", batch,
                                   line.at("variant").get<std::string>(),
                                   line.at("milliseconds_per_token").get<double>(),
                                   line.at("ratio").get<double>(), 100 * bench.matched_share()));
      all.push_back(line);
    }
  }
  context.print_result({{"shape", arguments.shape},
                        {"rows", rows},
                        {"dtype", arguments.dtype},
                        {"threads", omp_get_max_threads()},
                        {"decode", all}});
  return 0;
}

}  // namespace

void add_bench_decode(CLI::App& bench, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = bench.add_subcommand(
      "decode",
      "Milliseconds a token of decoding with a table's rows, by ram, mmap and direct, beside the "
      "main model alone: random weights and rows, the same texts, in turns step by step");
  command->add_option("--shape", arguments->shape, "tiny, small, gpt2-124m")->capture_default_str();
  command->add_option("--batch", arguments->batches, "Sequences decoded together")
      ->delimiter(',')
      ->check(at_least(1))
      ->capture_default_str();
  command->add_option("--access", arguments->access, "How rows are read")
      ->delimiter(',')
      ->check(CLI::IsMember({"ram", "mmap", "direct"}))
      ->capture_default_str();
  command->add_option("--rows", arguments->rows, "Of the table")->capture_default_str();
  command->add_option("--dtype", arguments->dtype, "Of the rows: fp32, bf16, fp16, int8")
      ->capture_default_str();
  command->add_option("--cache", arguments->cache, "direct: RAM for the first rows")
      ->capture_default_str();
  command->add_option("--max-length", arguments->max_length, "Of f-grams")->capture_default_str();
  command->add_option("--match-share", arguments->share, "Of the texts' positions, about")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_option("--prompt", arguments->prompt, "Tokens before those that are timed")
      ->check(at_least(1))
      ->capture_default_str();
  command->add_option("--tokens", arguments->tokens, "Timed tokens of each sequence and round")
      ->check(at_least(1))
      ->capture_default_str();
  command->add_option("--rounds", arguments->rounds, "After one that warms up; medians are printed")
      ->check(at_least(1))
      ->capture_default_str();
  command->add_option("--folder", arguments->folder, "For the table; default: the system's");
  command->callback([arguments, &action] {
    action = [arguments](CommandContext& context) { return run_decode(*arguments, context); };
  });
}

}  // namespace scone
