#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <vector>

#include "data/fgram_statistics.h"
#include "data/fgram_vocabulary.h"
#include "data/fgram_vocabulary_builder.h"
#include "data/hdf5_file.h"
#include "data/match_annotations.h"
#include "data/memory_budget.h"
#include "data/size_suffix.h"
#include "launch/command.h"
#include "launch/fgrams_report.h"
#include "parallel/error.h"

namespace scone {
namespace {

struct FgramsArguments {
  std::vector<std::string> data;
  std::string output, size, memory = "4G", spill;
  int max_length = 5;
  std::int64_t min_count = 5;
  std::string vocabulary;  // an existing file, in place of counting
  std::vector<std::string> batch_tokens = {"8Ki", "64Ki", "512Ki"};
  bool report = false, annotate = false;

  /// The file of f-grams that the command is about.
  const std::string& file() const { return vocabulary.empty() ? output : vocabulary; }
};

/// Prints the state of the scans, with rate and time left: rewriting one line on a terminal, else
/// at most one line each ten seconds, and one at the end of each scan.
class ProgressLine {
 public:
  ProgressLine(std::int64_t min_count, int ranks)
      : min_count_(min_count), ranks_(ranks), terminal_(::isatty(STDERR_FILENO) != 0) {}

  void operator()(const NgramProgress& progress) {
    if (progress.from_before || progress.ngrams >= 0) {
      end_of_scan(progress);
      return;
    }
    const auto now = Clock::now();
    const double seconds = seconds_between(scan_begin_, now);
    if (!progress.merging && seconds_between(printed_, now) < (terminal_ ? 0.2 : 10.0)) return;
    printed_ = now;
    const double share = static_cast<double>(progress.tokens) /
                         static_cast<double>(std::max<std::int64_t>(1, progress.tokens_total));
    // The scans to come take about as long as this one.
    const double left =
        share > 0 ? seconds / share * (1 - share + progress.scans - progress.scan) : 0;
    fmt::print(stderr, "{}scan {} of {}: {:5.1f} %  {:.1f}M tokens/s  {:.1f} MB spilled  {}{}",
               terminal_ ? "\r" : "", progress.scan, progress.scans, 100 * share,
               static_cast<double>(progress.tokens) * ranks_ / 1e6 / std::max(seconds, 1e-3),
               static_cast<double>(progress.spilled_bytes) * ranks_ / 1e6,
               progress.merging ? "merging" : fmt::format("{:.0f} s left", left),
               terminal_ ? "   " : "\n");
    std::fflush(stderr);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static double seconds_between(Clock::time_point begin, Clock::time_point end) {
    return std::chrono::duration<double>(end - begin).count();
  }

  void end_of_scan(const NgramProgress& progress) {
    const auto now = Clock::now();
    fmt::print(
        stderr, "{}scan {} of {}: {} n-grams of {} tokens occur {} times or more{}\n",
        terminal_ ? "\r" : "", progress.scan, progress.scans, progress.ngrams, progress.scan + 1,
        min_count_,
        progress.from_before
            ? " (counted before the interruption)"
            : fmt::format(" ({:.1f} s, {:.1f} MB spilled)", seconds_between(scan_begin_, now),
                          static_cast<double>(progress.spilled_bytes) * ranks_ / 1e6));
    std::fflush(stderr);
    scan_begin_ = printed_ = now;
  }

  std::int64_t min_count_;
  int ranks_;
  bool terminal_;
  Clock::time_point scan_begin_ = Clock::now(), printed_ = scan_begin_;
};

bool is_vocabulary(const std::filesystem::path& path) {
  try {
    const Hdf5File file = Hdf5File::open(path);
    return file.has_attribute("format") && file.string_attribute("format") == "scone-fgrams";
  } catch (const InputError&) {
    return false;
  }
}

/// Before an hour of counting: can the result be written?
void check_output(const std::filesystem::path& output) {
  if (!output.has_filename()) {
    throw InputError(
        fmt::format("--output '{}': expected a file name such as fgrams.h5", output.string()));
  }
  const auto folder = output.has_parent_path() ? output.parent_path() : std::filesystem::path(".");
  if (!std::filesystem::is_directory(folder)) {
    throw InputError(
        fmt::format("--output {}: expected an existing folder, found none at {}; create it first",
                    output.string(), folder.string()));
  }
  if (std::filesystem::is_directory(output)) {
    throw InputError(fmt::format(
        "--output {}: expected a file name, found a folder; give FOLDER/NAME.h5", output.string()));
  }
  if (std::filesystem::exists(output) && !is_vocabulary(output)) {
    throw InputError(fmt::format(
        "--output {}: exists and is no f-gram vocabulary, so it is not replaced; give another name",
        output.string()));
  }
  if (::access(folder.c_str(), W_OK) != 0) {
    throw InputError(
        fmt::format("--output {}: the folder cannot be written to: {}; give another one",
                    output.string(), std::strerror(errno)));
  }
}

nlohmann::json by_length(const std::vector<std::int64_t>& counts) {
  nlohmann::json object = nlohmann::json::object();
  for (std::size_t n = 2; n < counts.size(); ++n) object[std::to_string(n)] = counts[n];
  return object;
}

void print_summary(const FgramBuildResult& built, const FgramCoverage& coverage) {
  fmt::print(stderr, "{:>8} {:>14} {:>14} {:>18}\n", "length", "survivors", "chosen",
             "positions matched");
  for (std::size_t n = 2; n < built.survivors.size(); ++n) {
    const std::int64_t matched = n < coverage.matched.size() ? coverage.matched[n] : 0;
    fmt::print(stderr, "{:>8} {:>14} {:>14} {:>17.2f}%\n", n, built.survivors[n], built.chosen[n],
               100.0 * static_cast<double>(matched) / static_cast<double>(coverage.positions));
  }
  fmt::print(stderr, "{:>8} {:>14} {:>14} {:>17.2f}%\n", "all", built.total_survivors, built.size,
             100.0 - 100.0 * static_cast<double>(coverage.matched[0]) /
                         static_cast<double>(coverage.positions));
  fmt::print(stderr, "cut-off count {}\n", built.cutoff_count);
}

/// Counts, and writes the vocabulary; what the result says of it.
nlohmann::json build(const FgramsArguments& arguments, const TokenCorpus& corpus,
                     std::int64_t program_bytes, CommandContext& context, FgramBuildResult& built) {
  FgramBuildOptions options;
  options.size = parse_size_option("--size", arguments.size);
  options.memory_bytes = parse_size_option("--memory", arguments.memory);
  options.program_bytes = program_bytes;
  options.max_length = arguments.max_length;
  options.min_count = arguments.min_count;
  options.spill = arguments.spill;
  if (context.is_root()) options.progress = ProgressLine(options.min_count, context.world.size());
  built = build_fgram_vocabulary(context.world, corpus, options, arguments.output);
  if (context.is_root() && built.size < options.size) {
    fmt::print(
        stderr,
        "warning: only {} n-grams occur {} times or more, fewer than --size {}; all are taken\n",
        built.size, options.min_count, options.size);
  }
  return {{"output", arguments.output},
          {"max_length", options.max_length},
          {"min_count", options.min_count},
          {"survivors_by_length", by_length(built.survivors)},
          {"chosen_by_length", by_length(built.chosen)},
          {"cutoff_count", built.cutoff_count}};
}

/// Adds the report to `result`, and writes it beside the vocabulary: NAME-report.json and .svg.
void report(const FgramsArguments& arguments, const TokenCorpus& corpus,
            const FgramVocabulary& vocabulary, const FgramCoverage& coverage,
            nlohmann::json& result) {
  std::vector<std::int64_t> batches;
  for (const std::string& tokens : arguments.batch_tokens)
    batches.push_back(parse_size_option("--batch-tokens", tokens));
  result["sharing"] = report_sharing(corpus, vocabulary, coverage, batches);
  result["cutoffs"] = report_cutoffs(vocabulary);
  result["examples"] = report_examples(corpus, vocabulary);
  std::filesystem::path stem = arguments.file();
  stem.replace_extension();
  const std::string json = stem.string() + "-report.json", plot = stem.string() + "-report.svg";
  result["report"] = json;
  result["plot"] = plot;
  {
    std::ofstream file(json + ".partial");
    file << result.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
    if (!file.flush())
      throw InputError(fmt::format("{}: cannot be written; is the disk full?", json));
  }
  std::filesystem::rename(json + ".partial", json);
  draw_report(result, plot);
  fmt::print(stderr, "report: {} and {}\n", json, plot);
}

int run_fgrams(const FgramsArguments& arguments, CommandContext& context) {
  const auto begin = std::chrono::steady_clock::now();
  const std::int64_t program_bytes = private_memory_bytes();
  if (arguments.vocabulary.empty() && arguments.size.empty()) {
    throw InputError(
        "scone fgrams: expected --output FILE and --size S to count, or --vocabulary FILE for one "
        "that exists");
  }
  if (!arguments.vocabulary.empty() && !arguments.output.empty())
    throw InputError("scone fgrams: --vocabulary FILE is not counted anew; leave --output out");
  for (const std::string& tokens : arguments.batch_tokens) {
    if (parse_size_option("--batch-tokens", tokens) < 1)
      throw InputError("--batch-tokens: expected at least 1, found 0");
  }
  const std::int64_t size =
      arguments.size.empty() ? 0 : parse_size_option("--size", arguments.size);
  if (context.is_root()) {
    if (arguments.vocabulary.empty()) check_output(arguments.output);
    if (arguments.report) require_gnuplot();
  }
  const TokenCorpus corpus({arguments.data.begin(), arguments.data.end()});
  if (context.is_root()) {
    fmt::print(stderr, "{} tokens in {} documents, {} shards, on {}\n", corpus.tokens(),
               corpus.documents(), corpus.shards().size(), context.world.describe());
  }
  nlohmann::json result = nlohmann::json::object();
  FgramBuildResult built;
  if (arguments.vocabulary.empty())
    result = build(arguments, corpus, program_bytes, context, built);
  const FgramVocabulary vocabulary(arguments.file(), arguments.vocabulary.empty() ? 0 : size);
  if (arguments.annotate) {
    write_match_annotations(context.world, corpus, vocabulary);
    if (context.is_root())
      fmt::print(stderr, "matches of {} tokens written beside {} shards\n", corpus.tokens(),
                 corpus.shards().size());
  }
  const FgramCoverage coverage = measure_coverage(context.world, corpus, vocabulary);
  if (context.is_root()) {
    if (arguments.vocabulary.empty()) print_summary(built, coverage);
    result["size"] = vocabulary.size();
    result["fingerprint"] = vocabulary.fingerprint();
    result["corpus_tokens"] = corpus.tokens();
    result["coverage"] = coverage_json(coverage);
    if (arguments.report) report(arguments, corpus, vocabulary, coverage, result);
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    fmt::print(stderr, "{} f-grams in {}, {:.1f} s\n", vocabulary.size(), arguments.file(),
               seconds);
    result["seconds"] = seconds;
    context.print_result(result);
  }
  context.world.barrier();
  return 0;
}

}  // namespace

void add_fgrams(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<FgramsArguments>();
  CLI::App* command =
      app.add_subcommand("fgrams", "Token shards -> f-gram vocabulary: the most frequent n-grams");
  command->add_option("--data", arguments->data, "Token shards, or folders of them (DIR/train)")
      ->required();
  command->add_option("--output", arguments->output, "The f-gram vocabulary to write (FILE.h5)");
  command->add_option("--size", arguments->size, "Number of f-grams, such as 100K or 10M");
  command->add_option("--vocabulary", arguments->vocabulary,
                      "An f-gram vocabulary that exists, to report on or annotate with instead of "
                      "counting; of --size, its first");
  command->add_option("--max-length", arguments->max_length, "Longest f-gram in tokens")
      ->capture_default_str();
  command
      ->add_option("--min-count", arguments->min_count,
                   "Least number of occurrences, from the first scan on")
      ->capture_default_str();
  command
      ->add_option("--memory", arguments->memory,
                   "Memory that a rank may use, such as 4G: all of it but what the program and its "
                   "libraries hold at the start")
      ->capture_default_str();
  command->add_option("--spill", arguments->spill,
                      "Folder for temporary files, of this run alone (default: OUTPUT.spill)");
  command->add_flag("--report", arguments->report,
                    "Also measure how many distinct trie nodes batches need, and write coverage, "
                    "cut-off counts and examples as FILE-report.json and FILE-report.svg");
  command->add_option("--batch-tokens", arguments->batch_tokens, "Batches of the report")
      ->delimiter(',')
      ->capture_default_str();
  command->add_flag("--annotate", arguments->annotate,
                    "Also write the length of each position's match beside the tokens, as "
                    "SHARD.matches, which training then reads");
  command->callback([arguments, &action] {
    action = [arguments](CommandContext& context) { return run_fgrams(*arguments, context); };
  });
}

}  // namespace scone
