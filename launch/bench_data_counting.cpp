#include <fmt/format.h>
#include <omp.h>

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

/// Seconds and the most private memory of a piece of work, beyond what was held before it.
struct Cost {
  double seconds = 0, megabytes = 0;
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
  try {
    work();
  } catch (...) {
    done = true;
    sampler.join();
    throw;
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  done = true;
  sampler.join();
  return {seconds, static_cast<double>(peak - before) / 1e6};
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
  NgramCounterOptions counting{
      options.max_length, options.min_count, parse_size(options.memory), {}};
  counting.progress = [&](const NgramProgress& progress) {
    if (spilled != nullptr && progress.ngrams >= 0) *spilled += progress.spilled_bytes;
  };
  SpillFolder spill(folder / "spill", 0, 1);
  std::vector<std::int64_t> survivors;
  for (const NgramLevelFile& level : count_ngrams(context.world, corpus, counting, spill))
    survivors.push_back(level.total);
  return survivors;
}

/// Documents of the corpus as new shards of `tokens` tokens: the corpus as often as it takes, each
/// time with other token ids, so that the n-grams grow in number with it.
std::vector<std::filesystem::path> synthesize(const TokenCorpus& corpus, std::int64_t tokens,
                                              const std::filesystem::path& folder) {
  std::filesystem::create_directory(folder);
  const std::int64_t vocabulary = corpus.vocabulary_size();
  TokenShardWriter writer(folder, {corpus.tokenizer_fingerprint(), vocabulary, -1}, 50'000'000);
  std::vector<std::int32_t> document;
  for (std::int64_t copy = 0; writer.totals().tokens < tokens; ++copy) {
    for (std::int64_t d = 0; d < corpus.documents() && writer.totals().tokens < tokens; ++d) {
      const TokenCorpus::Range range = corpus.document(d);
      document.resize(static_cast<std::size_t>(
          std::min(range.end - range.begin, tokens - writer.totals().tokens)));
      corpus.read(range.begin, document);
      for (std::int32_t& token : document)
        token = static_cast<std::int32_t>((token + copy * 97 * (token % 5 + 1)) % vocabulary);
      writer.add(document, 0);
    }
  }
  writer.finish();
  return {folder};
}

}  // namespace

nlohmann::json bench_counting(const BenchDataOptions& options, CommandContext& context) {
  const TokenCorpus corpus({options.data.begin(), options.data.end()});
  const BenchFolder folder(options.folder);
  const int bits = bits_of_token(corpus.vocabulary_size());
  const auto tokens = static_cast<double>(corpus.tokens());
  std::vector<double> ours, plain;
  double ours_memory = 0, plain_memory = 0;
  for (int round = 0; round < options.rounds; ++round) {
    std::vector<std::int64_t> found, expected;
    const Cost mine = measure([&] { found = count_ours(corpus, options, folder.path(), context); });
    const Cost theirs = measure([&] {
      expected = with_key_words(options.max_length, bits, [&]<int Words>() {
        return count_plainly<Words>(corpus, options.max_length, options.min_count);
      });
    });
    while (!expected.empty() && expected.back() == 0) expected.pop_back();
    if (found != expected)
      throw std::runtime_error("bench data: the counters find different n-grams");
    ours.push_back(mine.seconds);
    plain.push_back(theirs.seconds);
    ours_memory = std::max(ours_memory, mine.megabytes);
    plain_memory = std::max(plain_memory, theirs.megabytes);
  }
  const double own = median_of(ours), other = median_of(plain);
  print_bench_line(
      context,
      fmt::format("counting {} tokens, n-grams of up to {}, {} threads, median of {}\n"
                  "{:<24} {:>10} {:>12} {:>12}\n"
                  "{:<24} {:>10.2f} {:>11.2f}M {:>12.0f}\n"
                  "{:<24} {:>10.2f} {:>11.2f}M {:>12.0f}\n"
                  "{:<24} {:>10.2f} {:>12} {:>12.2f}",
                  corpus.tokens(), options.max_length, omp_get_max_threads(), options.rounds, "",
                  "seconds", "tokens/s", "peak MB", "scone", own, tokens / own / 1e6, ours_memory,
                  "std::unordered_map", other, tokens / other / 1e6, plain_memory, "ratio",
                  other / own, "", ours_memory / plain_memory));
  nlohmann::json result{{"tokens", corpus.tokens()},
                        {"threads", omp_get_max_threads()},
                        {"memory", options.memory},
                        {"seconds", own},
                        {"tokens_per_second", tokens / own},
                        {"peak_mb", ours_memory},
                        {"unordered_map", {{"seconds", other}, {"peak_mb", plain_memory}}},
                        {"faster", other / own}};

  const std::vector<std::int64_t> sizes{10'000'000, 100'000'000};
  std::vector<std::vector<double>> seconds(2);
  std::vector<double> peaks(2, 0);
  std::vector<std::int64_t> spilled(2, 0);
  std::vector<std::vector<std::filesystem::path>> shards;
  for (const std::int64_t size : sizes)
    shards.push_back(synthesize(corpus, size, folder.path() / std::to_string(size)));
  for (int round = 0; round < options.rounds; ++round) {
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const TokenCorpus grown(shards[i]);
      spilled[i] = 0;
      const Cost cost =
          measure([&] { count_ours(grown, options, folder.path(), context, &spilled[i]); });
      seconds[i].push_back(cost.seconds);
      peaks[i] = std::max(peaks[i], cost.megabytes);
    }
  }
  const double growth = median_of(seconds[1]) / median_of(seconds[0]) / 10;
  print_bench_line(context,
                   fmt::format("growth, --memory {}\n{:>12} {:>10} {:>12} {:>12}", options.memory,
                               "tokens", "seconds", "peak MB", "MB spilled"));
  nlohmann::json rows = nlohmann::json::array();
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    print_bench_line(context, fmt::format("{:>12} {:>10.2f} {:>12.0f} {:>12.0f}", sizes[i],
                                          median_of(seconds[i]), peaks[i],
                                          static_cast<double>(spilled[i]) / 1e6));
    rows.push_back({{"tokens", sizes[i]},
                    {"seconds", median_of(seconds[i])},
                    {"peak_mb", peaks[i]},
                    {"spilled_bytes", spilled[i]}});
  }
  print_bench_line(context, fmt::format("time over linear: {:.3f}", growth));
  result["growth"] = {{"rows", rows}, {"over_linear", growth}};
  return result;
}

}  // namespace scone
