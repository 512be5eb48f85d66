#include "launch/bench_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "launch/option_checks.h"
#include "parallel/error.h"

namespace scone {
namespace {

struct Part {
  const char* name;
  nlohmann::json (*run)(const BenchDataOptions&, CommandContext&);
};

constexpr Part parts[] = {
    {"counting", bench_counting},
    {"matching", bench_matching},
    {"reading", bench_reading},
    {"tokenizing", bench_tokenizing},
};

std::vector<std::string> part_names() {
  std::vector<std::string> names;
  for (const Part& part : parts) names.emplace_back(part.name);
  return names;
}

}  // namespace

double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

void print_bench_line(const CommandContext& context, const std::string& line) {
  if (!context.is_root() || context.json) return;
  fmt::print("{}\n", line);
  std::fflush(stdout);
}

BenchFolder::BenchFolder(const std::string& parent) {
  const std::filesystem::path folder =
      parent.empty() ? std::filesystem::temp_directory_path() : std::filesystem::path(parent);
  std::string name = (folder / "scone-bench-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) {
    throw InputError(fmt::format("{}: no folder can be made in it: {}; give --folder another",
                                 folder.string(), std::strerror(errno)));
  }
  path_ = name;
}

BenchFolder::~BenchFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void add_bench_data(CLI::App& bench, Action& action) {
  auto options = std::make_shared<BenchDataOptions>();
  auto chosen = std::make_shared<std::vector<std::string>>();
  CLI::App* data = bench.add_subcommand("data",
                                        "Counting n-grams, matching f-grams, reading batches, "
                                        "tokenizing, beside other ways; on one rank");
  data->add_option("data,--data", options->data,
                   "Token shards, or folders of them (DIR/train), for all parts but tokenizing");
  data->add_option("--text", options->text, "Text or JSONL, for tokenizing: its first 50 MB");
  data->add_option("--tokenizer", options->tokenizer, "tokenizer.json or tokenizer.model");
  data->add_option("--peers", options->peers,
                   "Folder of launch/tokenizer_peers.sh: other tokenizers, side by side");
  data->add_option("--peers-script", options->peers_script, "What runs them")
      ->capture_default_str();
  data->add_option("--parts", *chosen, "Which of them (default: those that have what they need)")
      ->check(CLI::IsMember(part_names()))
      ->delimiter(',');
  data->add_option("--memory", options->memory, "Memory for counting, such as 1G")
      ->capture_default_str();
  data->add_option("--fgrams", options->fgrams, "Sizes of the vocabularies matched with")
      ->delimiter(',')
      ->capture_default_str();
  data->add_option("--max-length", options->max_length, "Longest n-gram in tokens")
      ->capture_default_str();
  data->add_option("--min-count", options->min_count, "Least number of occurrences")
      ->capture_default_str();
  data->add_option("--rounds", options->rounds, "Rounds of each measurement, in turns")
      ->check(at_least(1))
      ->capture_default_str();
  data->add_option("--folder", options->folder, "For temporary files (default: the system's)");
  data->callback([options, chosen, &action] {
    action = [options, chosen](CommandContext& context) {
      if (context.world.size() > 1) throw InputError("bench data: expected one rank");
      nlohmann::json result = nlohmann::json::object();
      for (const Part& part : parts) {
        const bool of_text = part.run == bench_tokenizing;
        const bool possible = of_text ? !options->text.empty() && !options->tokenizer.empty()
                                      : !options->data.empty();
        const bool wanted = std::find(chosen->begin(), chosen->end(), part.name) != chosen->end();
        if (wanted && !possible)
          throw InputError(fmt::format("bench data: {} needs {}", part.name,
                                       of_text ? "--text and --tokenizer" : "token shards"));
        if (!possible || !(wanted || chosen->empty())) continue;
        result[part.name] = part.run(*options, context);
      }
      if (result.empty())
        throw InputError("bench data: give token shards, or --text with --tokenizer");
      context.print_result(result);
      return 0;
    };
  });
}

}  // namespace scone
