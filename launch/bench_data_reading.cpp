#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <vector>

#include "data/batch_stream.h"
#include "data/mapped_file.h"
#include "launch/bench_data.h"
#include "parallel/error.h"

namespace scone {
namespace {

using Clock = std::chrono::steady_clock;
namespace fs = std::filesystem;

constexpr std::int64_t window = 1024;           // tokens
constexpr std::int64_t batch = 64;              // windows
constexpr std::int64_t most_tokens = 32 << 20;  // of one round
constexpr std::int64_t slices = 10;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// The corpus' tokens as uint16, one after another, in a file that goes with the object.
class FlatFile {
 public:
  FlatFile(const TokenCorpus& corpus, const std::string& parent)
      : folder_(parent), path_(folder_.path() / "tokens.bin") {
    std::ofstream stream(path_, std::ios::binary);
    std::vector<std::int32_t> tokens;
    for (std::int64_t first = 0; first < corpus.tokens(); first += 1 << 20) {
      tokens.resize(
          static_cast<std::size_t>(std::min<std::int64_t>(1 << 20, corpus.tokens() - first)));
      corpus.read(first, tokens);
      const std::vector<std::uint16_t> narrow(tokens.begin(), tokens.end());
      stream.write(reinterpret_cast<const char*>(narrow.data()),
                   static_cast<std::streamsize>(narrow.size() * sizeof(narrow[0])));
    }
    stream.close();
    if (!stream) throw std::runtime_error(fmt::format("{}: cannot be written", path_.string()));
  }
  const fs::path& path() const { return path_; }

 private:
  BenchFolder folder_;
  fs::path path_;
};

/// Inputs and targets of one batch, as llm.c's loader holds them.
struct Loaded {
  std::vector<std::int32_t> inputs = std::vector<std::int32_t>(batch * window);
  std::vector<std::int32_t> targets = std::vector<std::int32_t>(batch * window);
  std::uint64_t check = 0;  // of what was loaded, so that all ways are seen to load the same
  void count() {
    check = check * 31 + static_cast<std::uint64_t>(inputs.front() + inputs[inputs.size() / 2 + 7] +
                                                    targets.back());
  }
};

void load_flat(const std::uint16_t* tokens, const SamplePermutation& order, std::int64_t first,
               Loaded& loaded) {
  for (std::int64_t b = 0; b < batch; ++b) {
    const std::uint16_t* from = tokens + order(first + b) * window;
    std::int32_t* const inputs = loaded.inputs.data() + b * window;
    std::int32_t* const targets = loaded.targets.data() + b * window;
    for (std::int64_t i = 0; i < window; ++i) {
      inputs[i] = from[i];
      targets[i] = from[i + 1];
    }
  }
}

void load_corpus(const TokenCorpus& corpus, const SamplePermutation& order, std::int64_t first,
                 Loaded& loaded) {
  for (std::int64_t b = 0; b < batch; ++b) {
    const auto place = static_cast<std::size_t>(b * window);
    corpus.read_window(order(first + b) * window, std::span(loaded.inputs).subspan(place, window),
                       std::span(loaded.targets).subspan(place, window));
  }
}

}  // namespace

nlohmann::json bench_reading(const BenchDataOptions& options, CommandContext& context) {
  const fs::path corpus_path = options.data.front();
  const int rounds = options.rounds;
  if (!context.is_root()) return {};
  const TokenCorpus corpus({corpus_path});
  const std::int64_t samples = (corpus.tokens() - 1) / window;
  const std::int64_t batches = std::min(samples, most_tokens / window) / batch;
  if (batches == 0 || corpus.vocabulary_size() > 65536)
    throw InputError(fmt::format(
        "{}: expected at least {} tokens of a vocabulary of at most 65,536, found {} of {}",
        corpus_path.string(), batch * window + 1, corpus.tokens(), corpus.vocabulary_size()));
  const FlatFile flat(corpus, options.folder);
  const MappedFile mapped(flat.path());
  const auto* const tokens = reinterpret_cast<const std::uint16_t*>(mapped.data());
  // The stream's own order, but for the last window, which is short.
  const SamplePermutation order(1, 0, samples);
  BatchStreamOptions stream_options;
  stream_options.sequence_length = window;
  stream_options.batch_sequences = batch;
  stream_options.seed = 1;

  std::array<std::vector<double>, 4> rates;
  std::array<std::uint64_t, 2> checks{};
  std::array<double, 4> seconds{};
  const auto measure = [&](std::size_t way, std::int64_t first, std::int64_t last,
                           const std::function<void(std::int64_t)>& load) {
    const auto begin = Clock::now();
    for (std::int64_t b = first; b < last; ++b) load(b * batch);
    seconds[way] += seconds_since(begin);
  };
  for (int round = -1; round < rounds; ++round) {  // the first one fills the page cache
    Loaded of_flat, of_corpus;
    stream_options.attention_across_documents = true;
    BatchStream across(corpus, nullptr, stream_options);
    stream_options.attention_across_documents = false;
    BatchStream apart(corpus, nullptr, stream_options);
    Batch next_across, next_apart;
    seconds = {};
    // In slices, so that what else the machine does meets all ways alike.
    for (std::int64_t slice = 0; slice < slices; ++slice) {
      const std::int64_t first = batches * slice / slices, last = batches * (slice + 1) / slices;
      measure(0, first, last, [&](std::int64_t sample) {
        load_flat(tokens, order, sample, of_flat);
        of_flat.count();
      });
      measure(1, first, last, [&](std::int64_t sample) {
        load_corpus(corpus, order, sample, of_corpus);
        of_corpus.count();
      });
      measure(2, first, last, [&](std::int64_t) { across.next(next_across); });
      measure(3, first, last, [&](std::int64_t) { apart.next(next_apart); });
    }
    checks = {of_flat.check, of_corpus.check};
    if (round < 0) continue;
    for (std::size_t way = 0; way < rates.size(); ++way)
      rates[way].push_back(static_cast<double>(batches * batch * window) / seconds[way]);
  }
  if (checks[0] != checks[1])
    throw std::logic_error("bench data: the flat file and the corpus gave different tokens");
  const char* names[] = {"flat file, mmap", "corpus, windows", "batches",
                         "batches, documents apart"};
  const char* keys[] = {"flat_mmap", "corpus_windows", "batches", "batches_documents_apart"};
  nlohmann::json result = {{"tokens", batches * batch * window}, {"window", window}};
  fmt::print("reading {:.1f}M tokens in shuffled windows of {}, from page cache\n",
             static_cast<double>(batches * batch * window) / 1e6, window);
  fmt::print("{:<28} {:>14} {:>12}\n", "", "M tokens/s", "of flat");
  for (std::size_t way = 0; way < rates.size(); ++way) {
    const double rate = median_of(rates[way]);
    std::vector<double> shares;
    for (std::size_t round = 0; round < rates[way].size(); ++round)
      shares.push_back(rates[way][round] / rates[0][round]);
    const double share = median_of(shares);
    fmt::print("{:<28} {:>14.0f} {:>12.2f}\n", names[way], rate / 1e6, share);
    result[keys[way]] = {{"tokens_per_second", rate}, {"of_flat", share}};
  }
  return result;
}

}  // namespace scone
