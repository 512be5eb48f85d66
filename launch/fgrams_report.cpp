#include "launch/fgrams_report.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>

#include "data/tokenizer.h"
#include "parallel/error.h"

namespace scone {
namespace {

constexpr std::int64_t report_sequence_length = 256;
constexpr std::int64_t report_batches = 4;
constexpr int examples_of_length = 5;  // first, and as many last

nlohmann::json example(const FgramVocabulary& vocabulary, const Tokenizer* tokenizer,
                       std::int64_t id) {
  const std::vector<std::int32_t> tokens = vocabulary.tokens(id);
  nlohmann::json row{{"id", id}, {"count", vocabulary.count(id)}, {"tokens", tokens}};
  if (tokenizer != nullptr) row["text"] = tokenizer->decode(tokens);
  return row;
}

std::string size_label(std::int64_t size) {
  if (size >= 1'000'000 && size % 1'000'000 == 0) return fmt::format("{}M", size / 1'000'000);
  if (size >= 1024 && size % 1024 == 0) return fmt::format("{}Ki", size / 1024);
  return std::to_string(size);
}

}  // namespace

nlohmann::json coverage_json(const FgramCoverage& coverage) {
  nlohmann::json shares = nlohmann::json::object();
  for (std::size_t n = 2; n < coverage.matched.size(); ++n) {
    shares[std::to_string(n)] =
        static_cast<double>(coverage.matched[n]) / static_cast<double>(coverage.positions);
  }
  return {{"share", 1.0 - static_cast<double>(coverage.matched[0]) /
                              static_cast<double>(coverage.positions)},
          {"share_by_length", shares},
          {"fgram_tokens_per_position", coverage.fgram_tokens_per_position()},
          {"padded_fgram_tokens_per_position", coverage.padded_tokens_per_position()}};
}

nlohmann::json report_sharing(const TokenCorpus& corpus, const FgramVocabulary& vocabulary,
                              const FgramCoverage& coverage,
                              const std::vector<std::int64_t>& batch_tokens) {
  fmt::print(stderr,
             "f-gram tokens a position without sharing: {:.3f} (padded to {}: {:.3f})\n"
             "{:>14} {:>9} {:>14} {:>18}\n",
             coverage.fgram_tokens_per_position(), vocabulary.max_length(),
             coverage.padded_tokens_per_position(), "batch tokens", "batches", "nodes/token",
             "f-grams/token");
  nlohmann::json rows = nlohmann::json::array();
  for (const std::int64_t tokens : batch_tokens) {
    const FgramSharing sharing = measure_sharing(corpus, vocabulary, tokens, report_sequence_length,
                                                 report_batches, /*seed=*/0);
    nlohmann::json row{{"batch_tokens", tokens}, {"batches", sharing.batches}};
    if (sharing.batches == 0) {
      fmt::print(stderr, "{:>14} {:>9}   the corpus is smaller\n", tokens, 0);
      row["nodes_per_token"] = nullptr;
      row["fgrams_per_token"] = nullptr;
    } else {
      fmt::print(stderr, "{:>14} {:>9} {:>14.4f} {:>18.4f}\n", tokens, sharing.batches,
                 sharing.nodes_per_token, sharing.fgrams_per_token);
      row["nodes_per_token"] = sharing.nodes_per_token;
      row["fgrams_per_token"] = sharing.fgrams_per_token;
    }
    rows.push_back(row);
  }
  return rows;
}

nlohmann::json report_cutoffs(const FgramVocabulary& vocabulary) {
  nlohmann::json rows = nlohmann::json::array();
  const auto add = [&](std::int64_t size) {
    rows.push_back({{"size", size}, {"count", vocabulary.count(size - 1)}});
  };
  for (std::int64_t power = 1; power < vocabulary.size(); power *= 10) {
    for (const std::int64_t step : {1, 2, 5})
      if (step * power < vocabulary.size()) add(step * power);
  }
  add(vocabulary.size());
  return rows;
}

nlohmann::json report_examples(const TokenCorpus& corpus, const FgramVocabulary& vocabulary) {
  std::unique_ptr<Tokenizer> tokenizer;
  try {
    tokenizer = load_tokenizer(corpus.tokenizer_path());
  } catch (const InputError& error) {
    fmt::print(stderr, "examples are token ids alone: {}\n", error.what());
  }
  nlohmann::json lengths = nlohmann::json::object();
  for (int length = 2; length <= vocabulary.max_length(); ++length) {
    nlohmann::json first = nlohmann::json::array(), last = nlohmann::json::array();
    for (std::int64_t id = 0; id < vocabulary.size() && first.size() < examples_of_length; ++id)
      if (vocabulary.length(id) == length)
        first.push_back(example(vocabulary, tokenizer.get(), id));
    for (std::int64_t id = vocabulary.size(); id-- > 0 && last.size() < examples_of_length;)
      if (vocabulary.length(id) == length) last.push_back(example(vocabulary, tokenizer.get(), id));
    lengths[std::to_string(length)] = {{"first", first}, {"last", last}};
  }
  return lengths;
}

void require_gnuplot() {
  const int status = std::system("command -v gnuplot >/dev/null 2>&1");
  if (status != 0) {
    throw InputError(
        "--report draws with gnuplot, which is not installed; launch/setup.sh installs it (package "
        "gnuplot-nox)");
  }
}

void draw_report(const nlohmann::json& report, const std::filesystem::path& path) {
  std::string script = "$lengths << END\n";
  for (const auto& [length, share] : report.at("coverage").at("share_by_length").items())
    script += fmt::format("{} {}\n", length, 100 * share.get<double>());
  script += "END\n$cutoffs << END\n";
  for (const auto& row : report.at("cutoffs"))
    script +=
        fmt::format("{} {}\n", row["size"].get<std::int64_t>(), row["count"].get<std::int64_t>());
  script += "END\n";
  std::string nodes;
  for (const auto& row : report.at("sharing")) {
    if (row["nodes_per_token"].is_null()) continue;
    nodes +=
        fmt::format("\"{}\" {} {}\n", size_label(row["batch_tokens"].get<std::int64_t>()),
                    row["nodes_per_token"].get<double>(), row["fgrams_per_token"].get<double>());
  }
  if (!nodes.empty()) script += "$nodes << END\n" + nodes + "END\n";
  script += fmt::format(
      "set terminal svg size 1200,380 font 'sans-serif,14' background rgb 'white'\n"
      "set multiplot layout 1,3\n"
      "set grid ytics\nset border 3\nset tics nomirror\n"
      "set style fill solid 0.7\nset boxwidth 0.6\nunset key\n"
      "set title 'positions matched: {:.1f} %'\n"
      "set xlabel 'tokens of the longest match'\nset ylabel '% of positions'\n"
      "set yrange [0:*]\nset xtics 1\n"
      "plot $lengths using 1:2 with boxes linecolor rgb '#4477aa'\n"
      "set title 'cut-off count'\nset xlabel 'f-grams'\nset ylabel 'count of the last'\n"
      "set logscale xy\nset yrange [1:*]\nset xtics auto\nset format x '10^{{%T}}'\n"
      "plot $cutoffs using 1:2 with linespoints linecolor rgb '#4477aa' pointtype 7 pointsize 0.4\n"
      "unset logscale\nset format x '%g'\nset yrange [0:*]\nset title 'trie of a batch'\n"
      "set xlabel 'tokens of the batch'\nset ylabel 'a token'\n",
      100 * report.at("coverage").at("share").get<double>());
  if (nodes.empty()) {
    script +=
        "set label 1 'the corpus is smaller than a batch' at graph 0.1, graph 0.5\n"
        "set xrange [0:1]\nplot 0 notitle\n";
  } else {
    script +=
        "set key top right\nset style data linespoints\n"
        "plot $nodes using 0:2:xtic(1) title 'nodes' linecolor rgb '#4477aa' pointtype 7 pointsize "
        "0.5, $nodes using 0:3 title 'f-grams' linecolor rgb '#cc6677' pointtype 7 pointsize 0.5\n";
  }
  script += "unset multiplot\n";

  // The drawing comes under its name when it is whole; gnuplot is given no name to misread.
  std::filesystem::path partial = path;
  partial += ".partial";
  std::string quoted = "'";
  for (const char c : partial.string())
    quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  std::FILE* gnuplot = ::popen(("gnuplot >" + quoted + "'").c_str(), "w");
  if (gnuplot == nullptr) throw std::runtime_error("gnuplot could not be started");
  const bool written = std::fwrite(script.data(), 1, script.size(), gnuplot) == script.size();
  const int status = ::pclose(gnuplot);
  if (!written || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    std::error_code ignored;
    std::filesystem::remove(partial, ignored);
    throw std::runtime_error(fmt::format("{}: gnuplot failed to draw the report", path.string()));
  }
  std::filesystem::rename(partial, path);
}

}  // namespace scone
