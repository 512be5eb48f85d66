#include "checkpoint/bundle.h"

#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/bundle_convert.h"
#include "checkpoint/bundle_statistics.h"
#include "data/fgram_statistics.h"
#include "data/size_suffix.h"
#include "launch/command.h"
#include "launch/fgrams_report.h"
#include "launch/progress_line.h"
#include "parallel/error.h"

namespace scone {
namespace {

constexpr int kExitBadInput = 2;

int run_verify(const std::string& path, CommandContext& context) {
  if (!context.is_root()) return 0;
  const std::vector<std::string> problems = bundle_problems(path);
  for (const std::string& problem : problems) fmt::print(stderr, "{}\n", problem);
  nlohmann::json result = {{"bundle", path}, {"valid", problems.empty()}, {"problems", problems}};
  if (problems.empty()) {
    const Bundle bundle = open_bundle(path);
    const nlohmann::json& files = bundle.description.at("files");
    std::int64_t bytes = 0;
    for (const auto& file : files) bytes += file.at("bytes").get<std::int64_t>();
    if (!context.json)
      fmt::print("{}: {} files, {:.1f} MB, every checksum verified\n", path, files.size(),
                 static_cast<double>(bytes) / 1e6);
    result["files"] = files.size();
    result["bytes"] = bytes;
  }
  context.print_result(result);
  return problems.empty() ? 0 : kExitBadInput;
}

struct StatArguments {
  std::string path, tokens = "0";
  std::vector<std::string> data;
};

nlohmann::json json_of(const RowNorms& norms) {
  if (norms.rows == 0) return nullptr;
  return {{"rows", norms.rows},       {"min", norms.least},
          {"q1", norms.quartiles[0]}, {"median", norms.quartiles[1]},
          {"q3", norms.quartiles[2]}, {"max", norms.most},
          {"mean", norms.mean}};
}

void print_norms(const std::string& label, std::int64_t fgrams, const RowNorms& norms,
                 const FgramCoverage* coverage, std::size_t length) {
  fmt::print("  {:>6} {:>12}", label, fgrams);
  if (norms.rows == 0) {
    fmt::print("{:>60}", "no rows");
  } else {
    for (const double value : {norms.least, norms.quartiles[0], norms.quartiles[1],
                               norms.quartiles[2], norms.most, norms.mean})
      fmt::print(" {:>9.4f}", value);
  }
  if (coverage != nullptr) {
    const std::int64_t matched =
        length == 0 ? coverage->positions - coverage->matched[0] : coverage->matched[length];
    fmt::print(" {:>9.2f} %",
               100.0 * static_cast<double>(matched) / static_cast<double>(coverage->positions));
  }
  fmt::print("\n");
}

void print_statistics(const Bundle& bundle, const TableStatistics& statistics,
                      const FgramCoverage* coverage) {
  const TableLayout& layout = bundle.table->layout();
  const auto rows = static_cast<double>(layout.rows);
  fmt::print(
      "{}: {} rows of width {} in {}, {} files\n"
      "  payload {:.1f} MB, rows on disk {:.1f} MB ({:.3f} x), index {:.1f} MB, {:.2f} bytes of "
      "RAM an f-gram\n",
      bundle.folder.string(), layout.rows, layout.width, name_of(layout.type), layout.files(),
      static_cast<double>(statistics.payload_bytes) / 1e6,
      static_cast<double>(statistics.table_bytes) / 1e6,
      static_cast<double>(statistics.table_bytes) / static_cast<double>(statistics.payload_bytes),
      static_cast<double>(statistics.index_memory_bytes) / 1e6,
      static_cast<double>(statistics.index_memory_bytes) / rows);
  if (statistics.unused > 0)
    fmt::print("  {} f-grams are longer than {} tokens: their rows are never looked up\n",
               statistics.unused, bundle.matcher->max_length());
  fmt::print("  rows of zeros alone: {}\n", statistics.zero_rows);
  if (statistics.not_finite > 0)
    fmt::print("  rows with an infinity or NaN: {}, in none of the norms\n", statistics.not_finite);
  fmt::print("  {:>6} {:>12} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}{}\n", "length", "f-grams", "least",
             "q1", "median", "q3", "most", "mean", coverage ? "   positions" : "");
  std::int64_t used = 0;
  for (std::size_t length = 2; length < statistics.fgrams.size(); ++length) {
    used += statistics.fgrams[length];
    print_norms(std::to_string(length), statistics.fgrams[length],
                statistics.norms_by_length[length], coverage, length);
  }
  print_norms("all", used, statistics.norms, coverage, 0);
  if (coverage != nullptr) fmt::print("  of {} positions\n", coverage->positions);
}

nlohmann::json json_of(const Bundle& bundle, const TableStatistics& statistics) {
  const TableLayout& layout = bundle.table->layout();
  nlohmann::json fgrams = nlohmann::json::object(), norms = nlohmann::json::object();
  for (std::size_t length = 2; length < statistics.fgrams.size(); ++length) {
    fgrams[std::to_string(length)] = statistics.fgrams[length];
    norms[std::to_string(length)] = json_of(statistics.norms_by_length[length]);
  }
  return {{"bundle", bundle.folder.string()},
          {"rows", layout.rows},
          {"width", layout.width},
          {"dtype", name_of(layout.type)},
          {"files", layout.files()},
          {"payload_bytes", statistics.payload_bytes},
          {"table_bytes", statistics.table_bytes},
          {"index_bytes", statistics.index_memory_bytes},
          {"index_bytes_per_fgram",
           static_cast<double>(statistics.index_memory_bytes) / static_cast<double>(layout.rows)},
          {"fgrams_by_length", fgrams},
          {"unused", statistics.unused},
          {"zero_rows", statistics.zero_rows},
          {"not_finite_rows", statistics.not_finite},
          {"norms", json_of(statistics.norms)},
          {"norms_by_length", norms}};
}

/// Collective.
std::unique_ptr<FgramCoverage> coverage_of(const Bundle& bundle, const StatArguments& arguments,
                                           Communicator& world) {
  const std::int64_t tokens = parse_size_option("--tokens", arguments.tokens);
  if (arguments.data.empty()) {
    if (tokens > 0) throw InputError("--tokens: goes with --data, of which it takes the first");
    return nullptr;
  }
  const TokenCorpus corpus({arguments.data.begin(), arguments.data.end()});
  if (corpus.tokenizer_fingerprint() != bundle.matcher->tokenizer_fingerprint()) {
    throw InputError(fmt::format(
        "{}: tokenized with tokenizer {}, but {} is of {}; tokenize the text with the bundle's",
        arguments.data.front(), corpus.tokenizer_fingerprint(), bundle.folder.string(),
        bundle.matcher->tokenizer_fingerprint()));
  }
  auto coverage =
      std::make_unique<FgramCoverage>(measure_coverage(world, corpus, *bundle.matcher, tokens));
  if (coverage->positions == 0)
    throw InputError(fmt::format("--data {}: no tokens", arguments.data.front()));
  return coverage;
}

int run_stat(const StatArguments& arguments, CommandContext& context) {
  const Bundle bundle = open_bundle(arguments.path);
  if (!bundle.table) {
    throw InputError(fmt::format("{}: the bundle of a baseline: it has no table", arguments.path));
  }
  const auto coverage = coverage_of(bundle, arguments, context.world);
  if (!context.is_root()) return 0;
  const TableStatistics statistics = measure_table(*bundle.table);
  if (!context.json) print_statistics(bundle, statistics, coverage.get());
  nlohmann::json result = json_of(bundle, statistics);
  if (coverage) {
    result["coverage"] = coverage_json(*coverage);
    result["coverage"]["positions"] = coverage->positions;
  }
  context.print_result(result);
  return 0;
}

struct ConvertArguments {
  ConvertOptions options;
  std::string type, size = "0", file_size = "32G";
};

int run_convert(ConvertArguments& arguments, CommandContext& context) {
  if (!context.is_root()) return 0;
  ConvertOptions& options = arguments.options;
  if (!arguments.type.empty()) options.type = row_type_of(arguments.type);
  options.rows = parse_size_option("--size", arguments.size);
  options.file_bytes = parse_size_option("--file-size", arguments.file_size);
  ProgressLine line("convert", 1);
  const ConvertResult result =
      convert_bundle(options, [&](const BakeProgress& progress) { line(progress); });
  const std::string bundle = options.bundle.string();
  if (result.rounded_before())
    fmt::print(stderr,
               "note: the rows of {} were rounded to {} when it was made, so those in {} are no "
               "finer than that\n",
               options.source.string(), name_of(result.source_type), name_of(result.type));
  if (!context.json)
    fmt::print(
        "Converted {} into {}\n"
        "  table: {} of {} rows of width {}, {} -> {}, {:.1f} MB, index {:.1f} MB, {:.1f} s\n",
        options.source.string(), bundle, result.rows, result.source_rows, result.width,
        name_of(result.source_type), name_of(result.type),
        static_cast<double>(result.table_bytes) / 1e6,
        static_cast<double>(result.index_bytes) / 1e6, result.seconds);
  context.print_result({{"bundle", bundle},
                        {"rows", result.rows},
                        {"source_rows", result.source_rows},
                        {"width", result.width},
                        {"source_dtype", name_of(result.source_type)},
                        {"dtype", name_of(result.type)},
                        {"rounded_before", result.rounded_before()},
                        {"table_bytes", result.table_bytes},
                        {"index_bytes", result.index_bytes},
                        {"seconds", result.seconds}});
  return 0;
}

void add_verify(CLI::App& bundle, Action& action) {
  auto path = std::make_shared<std::string>();
  CLI::App* command = bundle.add_subcommand(
      "verify", "Compares every file with its checksum; a line each problem, exit code 2");
  command->add_option("bundle", *path, "Bundle")->required();
  command->callback([path, &action] {
    action = [path](CommandContext& context) { return run_verify(*path, context); };
  });
}

void add_stat(CLI::App& bundle, Action& action) {
  auto arguments = std::make_shared<StatArguments>();
  CLI::App* command = bundle.add_subcommand(
      "stat", "Sizes of the table, f-grams by length, norms of rows, and how often rows are taken");
  command->add_option("bundle", arguments->path, "Bundle")->required();
  command->add_option(
      "--data", arguments->data,
      "Token shards, files or folders: the share of their positions that take a row");
  command->add_option("--tokens", arguments->tokens,
                      "Only the first N tokens of --data (512K, 1M); 0: all");
  command->callback([arguments, &action] {
    action = [arguments](CommandContext& context) { return run_stat(*arguments, context); };
  });
}

void add_convert(CLI::App& bundle, Action& action) {
  auto arguments = std::make_shared<ConvertArguments>();
  CLI::App* command = bundle.add_subcommand(
      "convert",
      "Bundle -> bundle with rows of another type, or of the first f-grams alone; needs no "
      "checkpoint. From fp32 the rows are rounded as scone bake does.");
  ConvertOptions& options = arguments->options;
  command->add_option("bundle", options.source, "Bundle")->required();
  command->add_option("--out", options.bundle, "Folder of the bundle to make")->required();
  command->add_option(
      "--dtype", arguments->type,
      "Type of the table's numbers: fp32, bf16, fp16 or int8; default: as they are");
  command->add_option("--size", arguments->size, "The first S f-grams alone (200K, 1M); 0: all");
  command
      ->add_option("--file-size", arguments->file_size,
                   "Most of one file of rows (512M, 32G); there are as many as are needed")
      ->capture_default_str();
  command->add_flag("--overwrite", options.overwrite, "Replace an existing bundle");
  command->callback([arguments, &action] {
    action = [arguments](CommandContext& context) { return run_convert(*arguments, context); };
  });
}

}  // namespace

void add_bundle(CLI::App& app, Action& action) {
  CLI::App* bundle = app.add_subcommand("bundle", "Checks, measures and converts bundles");
  bundle->require_subcommand(1);
  add_verify(*bundle, action);
  add_stat(*bundle, action);
  add_convert(*bundle, action);
}

}  // namespace scone
