#include <fmt/format.h>
#include <omp.h>
#include <time.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <unordered_map>

#include "data/memory_budget.h"
#include "data/ngram_counter.h"
#include "data/ngram_key.h"
#include "data/size_suffix.h"
#include "data/token_corpus.h"
#include "data/token_shard.h"
#include "launch/bench_data.h"
#include "parallel/error.h"

namespace scone {
namespace {

using Clock = std::chrono::steady_clock;

/// Seconds, processor seconds of all threads, and the most private memory of a piece of work,
/// beyond what was held before it.
struct Cost {
  double seconds = 0, processor_seconds = 0, megabytes = 0;
};

double processor_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

/// What each measurement took in the rounds.
struct Costs {
  std::vector<double> seconds, processor_seconds;
  double megabytes = 0;
  void add(const Cost& cost) {
    seconds.push_back(cost.seconds);
    processor_seconds.push_back(cost.processor_seconds);
    megabytes = std::max(megabytes, cost.megabytes);
  }
  double median_seconds() const { return median_of(seconds); }
  double median_processor_seconds() const { return median_of(processor_seconds); }
};

template <class Work>
Cost measure(const Work& work) {
  const std::int64_t before = private_memory_bytes();
  std::atomic<bool> done = false;
  std::int64_t peak = before;
  std::thread sampler([&] {
    while (!done) {
      peak = std::max(peak, private_memory_bytes());
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  });
  const auto begin = Clock::now();
  const double processor_begin = processor_seconds();
  try {
    work();
  } catch (...) {
    done = true;
    sampler.join();
    throw;
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  const double processor = processor_seconds() - processor_begin;
  done = true;
  sampler.join();
  return {seconds, processor, static_cast<double>(peak - before) / 1e6};
}

struct HashOfKey {
  template <int Words>
  std::size_t operator()(const NgramKey<Words>& key) const {
    return static_cast<std::size_t>(key.hash());
  }
};

/// The plain way, as one would write it: a scan for each length into std::unordered_map, candidates
/// pruned by the map of the length before. Each thread keeps the n-grams of its share of the
/// hashes. Returns the survivors of each length.
template <int Words>
std::vector<std::int64_t> count_plainly(const TokenCorpus& corpus, int max_length,
                                        std::int64_t min_count) {
  using Key = NgramKey<Words>;
  using Map = std::unordered_map<Key, std::int64_t, HashOfKey>;
  const int bits = bits_of_token(corpus.vocabulary_size());
  const auto threads = static_cast<std::size_t>(omp_get_max_threads());
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(corpus.tokens()));
  corpus.read(0, tokens);
  const auto key_at = [&](std::size_t at, int length) {
    Key key;
    for (int i = 0; i < length; ++i)
      key.append(static_cast<std::uint32_t>(tokens[at + static_cast<std::size_t>(i)]), bits);
    return key;
  };
  std::vector<Map> before;
  const auto survived = [&](const Key& key) {
    return before[key.hash() / 7 % threads].count(key) > 0;
  };
  std::vector<std::int64_t> survivors;
  for (int length = 2; length <= max_length; ++length) {
    std::vector<Map> counts(threads);
#pragma omp parallel for schedule(static, 1)
    for (std::size_t t = 0; t < threads; ++t) {
      for (std::int64_t d = 0; d < corpus.documents(); ++d) {
        const TokenCorpus::Range document = corpus.document(d);
        for (std::int64_t at = document.begin; at + length <= document.end; ++at) {
          const Key key = key_at(static_cast<std::size_t>(at), length);
          if (key.hash() / 7 % threads != t) continue;
          if (length > 2 && (!survived(key_at(static_cast<std::size_t>(at), length - 1)) ||
                             !survived(key_at(static_cast<std::size_t>(at) + 1, length - 1))))
            continue;
          ++counts[t][key];
        }
      }
    }
    std::int64_t total = 0;
    for (Map& map : counts) {
      std::erase_if(map, [&](const auto& entry) { return entry.second < min_count; });
      total += static_cast<std::int64_t>(map.size());
    }
    survivors.push_back(total);
    before = std::move(counts);
  }
  return survivors;
}

std::vector<std::int64_t> count_ours(const TokenCorpus& corpus, const BenchDataOptions& options,
                                     const std::filesystem::path& folder, CommandContext& context,
                                     std::int64_t* spilled = nullptr) {
  NgramCounterOptions counting{options.max_length,
                               options.min_count,
                               parse_size_option("--memory", options.memory),
                               private_memory_bytes(),
                               {}};
  counting.progress = [&](const NgramProgress& progress) {
    if (spilled != nullptr && progress.ngrams >= 0) *spilled += progress.spilled_bytes;
  };
  SpillFolder spill(folder / "spill", 0, 1);
  std::vector<std::int64_t> survivors;
  for (const NgramLevelFile& level : count_ngrams(context.world, corpus, counting, spill))
    survivors.push_back(level.total);
  return survivors;
}

/// `base_tokens` of the corpus, documents from all over it, and as many copies of them as make
/// `tokens`, each with token ids of its own: so that the n-grams grow in number as the tokens do.
std::vector<std::filesystem::path> synthesize(const TokenCorpus& corpus, std::int64_t base_tokens,
                                              std::int64_t tokens,
                                              const std::filesystem::path& folder) {
  std::filesystem::create_directory(folder);
  const std::int64_t vocabulary = corpus.vocabulary_size();
  TokenShardWriter writer(folder, {corpus.tokenizer_fingerprint(), vocabulary, -1}, 50'000'000);
  std::vector<std::int32_t> document;
  const std::int64_t stride = std::max<std::int64_t>(1, corpus.tokens() / base_tokens);
  for (std::int64_t copy = 0; copy * base_tokens < tokens; ++copy) {
    std::int64_t left = base_tokens;
    for (std::int64_t pass = 0; pass < stride; ++pass) {
      for (std::int64_t d = pass; d < corpus.documents() && left > 0; d += stride) {
        const TokenCorpus::Range range = corpus.document(d);
        document.resize(static_cast<std::size_t>(std::min(range.end - range.begin, left)));
        corpus.read(range.begin, document);
        left -= static_cast<std::int64_t>(document.size());
        for (std::int32_t& token : document)
          token = static_cast<std::int32_t>((token + copy * 97) % vocabulary);
        writer.add(document, 0);
      }
    }
    if (left > 0)
      throw InputError(fmt::format("bench data: the corpus holds {} tokens, growth needs {}",
                                   corpus.tokens(), base_tokens));
  }
  writer.finish();
  return {folder};
}

/// Time and memory for 10M tokens and ten times as many.
nlohmann::json bench_growth(const TokenCorpus& corpus, const BenchDataOptions& options,
                            const std::filesystem::path& folder, CommandContext& context) {
  const std::vector<std::int64_t> sizes{10'000'000, 100'000'000};
  std::vector<Costs> costs(sizes.size());
  std::vector<std::int64_t> spilled(sizes.size(), 0);
  std::vector<std::vector<std::filesystem::path>> shards;
  for (const std::int64_t size : sizes)
    shards.push_back(synthesize(corpus, sizes[0], size, folder / std::to_string(size)));
  for (int round = 0; round < options.rounds; ++round) {
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const TokenCorpus grown(shards[i]);
      spilled[i] = 0;
      costs[i].add(measure([&] { count_ours(grown, options, folder, context, &spilled[i]); }));
    }
  }
  print_bench_line(
      context, fmt::format("growth, --memory {}\n{:>12} {:>9} {:>19} {:>9} {:>12}", options.memory,
                           "tokens", "seconds", "processor seconds", "peak MB", "MB spilled"));
  nlohmann::json rows = nlohmann::json::array();
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    print_bench_line(context,
                     fmt::format("{:>12} {:>9.2f} {:>19.2f} {:>9.0f} {:>12.0f}", sizes[i],
                                 costs[i].median_seconds(), costs[i].median_processor_seconds(),
                                 costs[i].megabytes, static_cast<double>(spilled[i]) / 1e6));
    rows.push_back({{"tokens", sizes[i]},
                    {"seconds", costs[i].median_seconds()},
                    {"processor_seconds", costs[i].median_processor_seconds()},
                    {"peak_mb", costs[i].megabytes},
                    {"spilled_bytes", spilled[i]}});
  }
  const double growth = costs[1].median_seconds() / costs[0].median_seconds() / 10;
  const double processor_growth =
      costs[1].median_processor_seconds() / costs[0].median_processor_seconds() / 10;
  print_bench_line(context, fmt::format("over linear: time {:.3f}, processor time {:.3f}", growth,
                                        processor_growth));
  return {{"rows", rows},
          {"time_over_linear", growth},
          {"processor_time_over_linear", processor_growth}};
}

}  // namespace

nlohmann::json bench_counting(const BenchDataOptions& options, CommandContext& context) {
  const TokenCorpus corpus({options.data.begin(), options.data.end()});
  const BenchFolder folder(options.folder);
  const int bits = bits_of_token(corpus.vocabulary_size());
  const auto tokens = static_cast<double>(corpus.tokens());
  Costs ours, plain;
  for (int round = 0; round < options.rounds; ++round) {
    std::vector<std::int64_t> found, expected;
    ours.add(measure([&] { found = count_ours(corpus, options, folder.path(), context); }));
    plain.add(measure([&] {
      expected = with_key_words(options.max_length, bits, [&]<int Words>() {
        return count_plainly<Words>(corpus, options.max_length, options.min_count);
      });
    }));
    while (!expected.empty() && expected.back() == 0) expected.pop_back();
    if (found != expected)
      throw std::runtime_error("bench data: the counters find different n-grams");
  }
  const auto line = [&](const std::string& name, const Costs& costs) {
    print_bench_line(context,
                     fmt::format("{:<20} {:>9.2f} {:>10.2f}M {:>19.2f} {:>9.0f}", name,
                                 costs.median_seconds(), tokens / costs.median_seconds() / 1e6,
                                 costs.median_processor_seconds(), costs.megabytes));
  };
  const double faster = plain.median_seconds() / ours.median_seconds();
  print_bench_line(
      context,
      fmt::format(
          "counting {} tokens, n-grams of up to {}, {} threads, --memory {}, medians of {}\n"
          "{:<20} {:>9} {:>11} {:>19} {:>9}",
          corpus.tokens(), options.max_length, omp_get_max_threads(), options.memory,
          options.rounds, "", "seconds", "tokens/s", "processor seconds", "peak MB"));
  line("scone", ours);
  line("std::unordered_map", plain);
  print_bench_line(context, fmt::format("{:.2f} times as fast, with {:.2f} of the memory", faster,
                                        ours.megabytes / plain.megabytes));
  nlohmann::json result{{"tokens", corpus.tokens()},
                        {"threads", omp_get_max_threads()},
                        {"memory", options.memory},
                        {"seconds", ours.median_seconds()},
                        {"tokens_per_second", tokens / ours.median_seconds()},
                        {"processor_seconds", ours.median_processor_seconds()},
                        {"peak_mb", ours.megabytes},
                        {"unordered_map",
                         {{"seconds", plain.median_seconds()},
                          {"processor_seconds", plain.median_processor_seconds()},
                          {"peak_mb", plain.megabytes}}},
                        {"faster", faster}};
  result["growth"] = bench_growth(corpus, options, folder.path(), context);
  return result;
}

}  // namespace scone
