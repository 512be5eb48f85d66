#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <span>

#include "data/fgram_vocabulary.h"
#include "data/fgram_vocabulary_builder.h"
#include "data/memory_budget.h"
#include "data/size_suffix.h"
#include "data/token_corpus.h"
#include "launch/bench_data.h"

namespace scone {
namespace {

/// Seconds that this thread has run: others on the machine do not count.
double thread_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

constexpr std::int64_t matched_tokens = 4'000'000;

/// Tokens of whole documents, spread over the corpus.
struct Sample {
  std::vector<std::int32_t> tokens;
  std::vector<std::size_t> begins{0};
};

Sample sample_of(const TokenCorpus& corpus) {
  Sample sample;
  const std::int64_t step = std::max<std::int64_t>(1, corpus.tokens() / matched_tokens);
  for (std::int64_t d = 0; d < corpus.documents(); d += step) {
    const TokenCorpus::Range range = corpus.document(d);
    const std::size_t begin = sample.tokens.size();
    sample.tokens.resize(begin + static_cast<std::size_t>(range.end - range.begin));
    corpus.read(range.begin, std::span(sample.tokens).subspan(begin));
    sample.begins.push_back(sample.tokens.size());
  }
  return sample;
}

}  // namespace

nlohmann::json bench_matching(const BenchDataOptions& options, CommandContext& context) {
  const TokenCorpus corpus({options.data.begin(), options.data.end()});
  const BenchFolder folder(options.folder);
  const Sample sample = sample_of(corpus);
  std::int64_t largest = 0;
  for (const std::string& size : options.fgrams)
    largest = std::max(largest, parse_size_option("--fgrams", size));
  FgramBuildOptions building;
  building.size = largest;
  building.max_length = options.max_length;
  building.min_count = 1;  // so that a small corpus has many
  building.memory_bytes = parse_size_option("--memory", options.memory);
  building.program_bytes = private_memory_bytes();
  const auto path = folder.path() / "fgrams.h5";
  const std::int64_t built = build_fgram_vocabulary(context.world, corpus, building, path).size;
  print_bench_line(
      context, fmt::format("matching {} tokens on one thread, by its processor time, median of {}\n"
                           "{:>12} {:>14} {:>14} {:>12} {:>14}",
                           sample.tokens.size(), options.rounds, "f-grams", "tokens/s",
                           "with lengths", "bytes each", "mean length"));
  nlohmann::json rows = nlohmann::json::array();
  std::vector<std::int64_t> ids(sample.tokens.size());
  std::vector<std::uint8_t> lengths(sample.tokens.size());
  for (const std::string& size : options.fgrams) {
    const FgramVocabulary vocabulary(path, std::min(built, parse_size_option("--fgrams", size)));
    std::vector<double> live, known;
    for (int round = 0; round < options.rounds; ++round) {
      const auto each = [&](const auto& match) {
        const double begin = thread_seconds();
        for (std::size_t d = 0; d + 1 < sample.begins.size(); ++d) {
          const std::size_t at = sample.begins[d], count = sample.begins[d + 1] - at;
          match(std::span(sample.tokens).subspan(at, count), std::span(ids).subspan(at, count),
                std::span(lengths).subspan(at, count));
        }
        return static_cast<double>(sample.tokens.size()) / (thread_seconds() - begin);
      };
      live.push_back(each([&](auto tokens, auto found, auto) { vocabulary.match(tokens, found); }));
      each(
          [&](auto tokens, auto found, auto long_as) { vocabulary.match(tokens, found, long_as); });
      known.push_back(each([&](auto tokens, auto found, auto long_as) {
        vocabulary.match_of_lengths(tokens, long_as, found);
      }));
    }
    double sum = 0;
    for (const std::uint8_t length : lengths) sum += length;
    const double bytes =
        static_cast<double>(vocabulary.memory_bytes()) / static_cast<double>(vocabulary.size());
    const double mean = sum / static_cast<double>(lengths.size());
    print_bench_line(
        context, fmt::format("{:>12} {:>13.1f}M {:>13.1f}M {:>12.2f} {:>14.2f}", vocabulary.size(),
                             median_of(live) / 1e6, median_of(known) / 1e6, bytes, mean));
    rows.push_back({{"fgrams", vocabulary.size()},
                    {"tokens_per_second", median_of(live)},
                    {"tokens_per_second_with_lengths", median_of(known)},
                    {"bytes_per_fgram", bytes},
                    {"mean_match_length", mean}});
  }
  return {{"tokens", sample.tokens.size()}, {"rows", rows}};
}

}  // namespace scone
