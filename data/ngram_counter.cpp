#include "data/ngram_counter.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>

#include "data/loop_errors.h"
#include "data/memory_budget.h"
#include "data/ngram_candidates.h"
#include "data/ngram_filter.h"
#include "data/ngram_key.h"
#include "data/ngram_level_list.h"
#include "data/ngram_store.h"
#include "parallel/agreed_errors.h"
#include "parallel/error.h"

namespace scone {
namespace {

constexpr std::int64_t smallest_chunk = 16 * 1024;       // positions of a round
constexpr std::int64_t largest_chunk = 8 * 1024 * 1024;  // more gains nothing
constexpr std::size_t output_records = 1024;             // survivors that a thread writes at once
constexpr std::int64_t thread_bytes = 512 * 1024;        // stacks and small buffers of a thread

/// What all scans share.
struct Counting {
  Communicator& communicator;
  const TokenCorpus& corpus;
  const NgramCounterOptions& options;
  SpillFolder& spill;
  int bits = 0;
  std::int64_t first = 0, last = 0;  // this rank's positions
  std::int64_t budget = 0;           // bytes that the scans may take
  int threads = 1;

  std::int64_t positions() const { return last - first; }
};

/// How a scan divides its memory.
struct ScanMemory {
  std::int64_t chunk = 0;        // positions of a round
  std::int64_t chunk_bytes = 0;  // of its buffers, free again when merging
  std::int64_t table_bytes = 0;
  std::size_t partitions = 0;  // of each rank
};

std::int64_t bytes_per_position(int words, int ranks) {
  const std::int64_t key = 8 * words, record = key + 8;
  // Keys found and keys divided; with several ranks the records sent and received (those with a
  // margin for their uneven division).
  return 2 * key + (ranks == 1 ? 0 : 2 * record + record / 4);
}

std::int64_t smallest_budget(int words, int ranks, int threads) {
  const std::int64_t partitions = 16;
  return 2 * (smallest_chunk * bytes_per_position(words, ranks) + thread_bytes * threads +
              partitions * static_cast<std::int64_t>(NgramStore<1>::first_slots) * 8 *
                  (words + 1)) +
         (std::int64_t{2} << 20U);
}

ScanMemory divide_memory(const Counting& counting, int words, std::int64_t filter_bytes) {
  ScanMemory memory;
  const int ranks = counting.communicator.size();
  const std::int64_t left =
      counting.budget - filter_bytes - thread_bytes * counting.threads - counting.budget / 16;
  const std::int64_t position = bytes_per_position(words, ranks);
  memory.chunk = std::clamp(left / 3 / position, smallest_chunk, largest_chunk);
  memory.chunk =
      std::clamp<std::int64_t>(memory.chunk, 1, std::max<std::int64_t>(1, counting.positions()));
  memory.chunk_bytes = memory.chunk * position;
  memory.table_bytes = left - memory.chunk_bytes;
  // Tables that a core's cache holds.
  const std::int64_t wanted =
      std::min(memory.table_bytes, counting.positions() * 8 * (words + 1)) / (512 * 1024);
  memory.partitions = static_cast<std::size_t>(
      std::clamp<std::int64_t>(wanted, 16, std::max<std::int64_t>(16, 2048 / ranks)));
  return memory;
}

/// One rank's part of one scan.
template <int Words>
class Scan {
 public:
  using Key = NgramKey<Words>;
  using Record = NgramRecord<Words>;

  Scan(Counting& counting, int length, const NgramFilter* filter)
      : counting_(counting),
        length_(length),
        filter_(filter),
        memory_(divide_memory(counting, Words, filter != nullptr ? filter->bytes() : 0)),
        ranks_(static_cast<std::size_t>(counting.communicator.size())) {
    // Ranks divide alike, whatever memory each has left.
    Communicator& communicator = counting.communicator;
    division_ = {ranks_, static_cast<std::uint64_t>(communicator.all_reduce_value(
                             static_cast<std::int64_t>(memory_.partitions), ReduceOp::min))};
    budget_ = std::make_unique<MemoryBudget>(memory_.table_bytes);
    run_agreed(communicator, [&] {
      spill_ = std::make_unique<SpillFile>(
          SpillFile::create(counting.spill.path() / fmt::format("runs-{}", length), false));
    });
    store_ = std::make_unique<NgramStore<Words>>(
        static_cast<std::size_t>(communicator.rank()) * division_.partitions, division_.partitions,
        *budget_, *spill_);
  }

  NgramLevelFile run() {
    count();
    NgramLevelFile level;
    level.length = length_;
    level.path = counting_.spill.path() / fmt::format("level-{}", length_);
    run_agreed(counting_.communicator, [&] { write_survivors(level); });
    level.total = counting_.communicator.all_reduce_value(level.records, ReduceOp::sum);
    level.spilled_bytes = spill_->size();
    return level;
  }

 private:
  std::size_t all_partitions() const { return ranks_ * division_.partitions; }

  void count() {
    Communicator& communicator = counting_.communicator;
    const auto chunk = static_cast<std::size_t>(memory_.chunk);
    found_ = PageBuffer<Key>(chunk);
    keys_ = PageBuffer<Key>(chunk);
    if (ranks_ > 1) send_ = PageBuffer<Record>(chunk);
    const std::int64_t rounds = communicator.all_reduce_value(
        (counting_.positions() + memory_.chunk - 1) / memory_.chunk, ReduceOp::max);
    for (std::int64_t round = 0; round < rounds; ++round) {
      const std::int64_t begin = std::min(counting_.first + round * memory_.chunk, counting_.last);
      const std::int64_t end = std::min(begin + memory_.chunk, counting_.last);
      run_agreed(communicator, [&] {
        divide_candidates(begin, end);
        if (ranks_ == 1) {
          for_partitions(division_.partitions, [&](std::size_t p) {
            const Key* keys = keys_.data() + begin_of_[p];
            store_->add(p, begin_of_[p + 1] - begin_of_[p], [keys](std::size_t i) {
              return Record{keys[i], 1};
            });
          });
        } else {
          aggregate();
        }
      });
      if (ranks_ > 1) exchange();
      report(end - counting_.first, false);
    }
    found_ = PageBuffer<Key>();
    keys_ = PageBuffer<Key>();
    send_ = PageBuffer<Record>();
  }

  /// Calls body(p) for p in [0, count), on all threads.
  template <class Body>
  void for_partitions(std::size_t count, const Body& body) {
    LoopErrors errors;
#pragma omp parallel for schedule(dynamic) num_threads(counting_.threads)
    for (std::size_t p = 0; p < count; ++p) errors.guard([&] { body(p); });
    errors.rethrow();
  }

  /// keys_: the candidates that start at [begin, end), partition by partition, from begin_of_[p].
  void divide_candidates(std::int64_t begin, std::int64_t end) {
    const auto threads = static_cast<std::size_t>(counting_.threads);
    const std::size_t partitions = all_partitions();
    std::vector<std::size_t> cursor(threads * partitions, 0), found(threads, 0);
    begin_of_.assign(partitions + 1, 0);
    const auto part_begin = [&](std::size_t thread) {
      return begin +
             (end - begin) * static_cast<std::int64_t>(thread) / static_cast<std::int64_t>(threads);
    };
    LoopErrors errors;
#pragma omp parallel for schedule(static, 1) num_threads(counting_.threads)
    for (std::size_t t = 0; t < threads; ++t) {
      errors.guard([&] {
        Key* out = found_.data() + (part_begin(t) - begin);
        Key* const first = out;
        std::size_t* own = cursor.data() + t * partitions;
        const auto candidates = std::make_unique<NgramCandidates<Words>>(counting_.corpus, length_,
                                                                         counting_.bits, filter_);
        candidates->visit(part_begin(t), part_begin(t + 1), [&](const Key& key) {
          *out++ = key;
          ++own[division_.partition(key.hash())];
        });
        found[t] = static_cast<std::size_t>(out - first);
      });
    }
    errors.rethrow();
    std::size_t total = 0;
    for (std::size_t p = 0; p < partitions; ++p) {
      begin_of_[p] = total;
      for (std::size_t t = 0; t < threads; ++t) {
        const std::size_t here = total;
        total += cursor[t * partitions + p];
        cursor[t * partitions + p] = here;
      }
    }
    begin_of_[partitions] = total;
#pragma omp parallel for schedule(static, 1) num_threads(counting_.threads)
    for (std::size_t t = 0; t < threads; ++t) {
      const Key* from = found_.data() + (part_begin(t) - begin);
      std::size_t* own = cursor.data() + t * partitions;
      for (std::size_t i = 0; i < found[t]; ++i)
        keys_[own[division_.partition(from[i].hash())]++] = from[i];
    }
  }

  /// send_: the distinct candidates of this round and their counts, rank after rank.
  void aggregate() {
    std::vector<std::size_t> distinct(all_partitions(), 0);
    MemoryBudget unlimited(std::int64_t{1} << 62U);  // a partition of a round is small
    for_partitions(all_partitions(), [&](std::size_t p) {
      NgramStore<Words> round(0, 1, unlimited, *spill_);
      const Key* keys = keys_.data() + begin_of_[p];
      round.add(0, begin_of_[p + 1] - begin_of_[p], [keys](std::size_t i) {
        return Record{keys[i], 1};
      });
      Record* out = send_.data() + begin_of_[p];
      round.finish(0, 1, 0, [&](const Record& record) { out[distinct[p]++] = record; });
    });
    send_counts_.assign(ranks_, 0);
    std::size_t total = 0;
    for (std::size_t p = 0; p < all_partitions(); ++p) {
      std::copy_n(send_.data() + begin_of_[p], distinct[p], send_.data() + total);
      total += distinct[p];
      send_counts_[p / division_.partitions] += static_cast<std::int64_t>(distinct[p]);
    }
    sent_ = total;
  }

  /// Sends the round's records to their owners and adds what this rank owns.
  void exchange() {
    Communicator& communicator = counting_.communicator;
    const std::vector<std::int64_t> counts = communicator.exchange_counts(send_counts_);
    std::vector<std::size_t> source_begin{0};
    for (const std::int64_t count : counts)
      source_begin.push_back(source_begin.back() + static_cast<std::size_t>(count));
    PageBuffer<Record> received(source_begin.back());
    communicator.all_to_all(std::as_bytes(send_.span().first(sent_)), send_counts_,
                            std::as_writable_bytes(received.span()), counts, sizeof(Record));
    run_agreed(communicator, [&] {
      // Each source's records are in the order of the partitions.
      const std::size_t stride = division_.partitions + 1;
      std::vector<std::size_t> begins(ranks_ * stride, 0);
#pragma omp parallel for schedule(static, 1) num_threads(counting_.threads)
      for (std::size_t source = 0; source < ranks_; ++source) {
        std::size_t* begin = begins.data() + source * stride;
        for (std::size_t i = source_begin[source]; i < source_begin[source + 1]; ++i)
          ++begin[division_.partition(received[i].key.hash()) - store_->first_partition() + 1];
        begin[0] = source_begin[source];
        for (std::size_t p = 1; p < stride; ++p) begin[p] += begin[p - 1];
      }
      for_partitions(division_.partitions, [&](std::size_t p) {
        for (std::size_t source = 0; source < ranks_; ++source) {
          const std::size_t* begin = begins.data() + source * stride + p;
          const Record* records = received.data() + begin[0];
          store_->add(p, begin[1] - begin[0],
                      [records](std::size_t i) -> const Record& { return records[i]; });
        }
      });
    });
  }

  void write_survivors(NgramLevelFile& level) {
    SpillFile file = SpillFile::create(level.path, true);
    const auto min_count = static_cast<std::uint64_t>(counting_.options.min_count);
    const auto merge_bytes = static_cast<std::size_t>(
        std::max(memory_.chunk_bytes, smallest_chunk * bytes_per_position(Words, 1)) /
        counting_.threads);
    if (spill_->size() > 0) report(counting_.positions(), true);
    std::vector<std::vector<Record>> buffers(static_cast<std::size_t>(counting_.threads));
    const auto flush = [&](std::vector<Record>& buffer) {
      file.append(std::as_bytes(std::span(buffer)));
      buffer.clear();
    };
    for_partitions(division_.partitions, [&](std::size_t p) {
      std::vector<Record>& buffer = buffers[static_cast<std::size_t>(omp_get_thread_num())];
      buffer.reserve(output_records);
      store_->finish(p, min_count, merge_bytes, [&](const Record& record) {
        buffer.push_back(record);
        if (buffer.size() == output_records) flush(buffer);
      });
    });
    for (auto& buffer : buffers) flush(buffer);
    file.sync();
    level.records = file.size() / static_cast<std::int64_t>(sizeof(Record));
  }

  void report(std::int64_t tokens, bool merging) const {
    if (!counting_.options.progress) return;
    NgramProgress progress;
    progress.scan = length_ - 1;
    progress.scans = counting_.options.max_length - 1;
    progress.tokens = tokens;
    progress.tokens_total = counting_.positions();
    progress.merging = merging;
    progress.spilled_bytes = spill_->size();
    counting_.options.progress(progress);
  }

  Counting& counting_;
  const int length_;
  const NgramFilter* const filter_;
  const ScanMemory memory_;
  const std::size_t ranks_;
  NgramDivision division_;
  std::unique_ptr<MemoryBudget> budget_;
  std::unique_ptr<SpillFile> spill_;
  std::unique_ptr<NgramStore<Words>> store_;
  // A round's: candidates as found, and by partition; records to send.
  PageBuffer<Key> found_, keys_;
  std::vector<std::size_t> begin_of_;
  PageBuffer<Record> send_;
  std::vector<std::int64_t> send_counts_;
  std::size_t sent_ = 0;
};

std::unique_ptr<NgramFilter> filter_of(Counting& counting, const NgramLevelFile& level) {
  const auto each = [&](const std::function<void(std::uint64_t)>& add) {
    with_key_words(level.length, counting.bits, [&]<int Words>() {
      using Record = NgramRecord<Words>;
      read_level(level, sizeof(Record), [&](std::span<const std::byte> bytes) {
        const auto* records = reinterpret_cast<const Record*>(bytes.data());
        for (std::size_t i = 0; i < bytes.size() / sizeof(Record); ++i) add(records[i].key.hash());
      });
    });
  };
  return std::make_unique<NgramFilter>(counting.communicator, level.records, counting.budget / 6,
                                       each);
}

void check_memory(const Counting& counting, std::int64_t in_use) {
  const int words = words_of_key(counting.options.max_length, counting.bits);
  const std::int64_t needed =
      in_use + smallest_budget(words, counting.communicator.size(), counting.threads);
  if (counting.options.memory_bytes >= needed) return;
  throw InputError(fmt::format(
      "--memory {:.1f}M is too little to make progress: counting n-grams of up to {} "
      "tokens on {} threads need {:.1f} MB beside the {:.1f} MB that it holds already; "
      "give "
      "--memory {}M or more, or fewer threads",
      static_cast<double>(counting.options.memory_bytes) / 1e6, counting.options.max_length,
      counting.threads, static_cast<double>(needed - in_use) / 1e6,
      static_cast<double>(in_use) / 1e6, needed / 1'000'000 + 1));
}

}  // namespace

std::int64_t estimated_spill_bytes(std::int64_t rank_tokens, int bits,
                                   const NgramCounterOptions& options) {
  const std::int64_t record = 8 * (words_of_key(options.max_length, bits) + 1);
  const std::int64_t survivors =
      rank_tokens / options.min_count * static_cast<std::int64_t>(options.max_length - 1) / 4;
  const std::int64_t candidates = rank_tokens / 2;  // repeats inside a run are counted, not written
  // Hash tables are half full when they grow, and the program holds some memory itself.
  const bool fits = candidates * record * 2 < options.memory_bytes / 2;
  return (survivors + (fits ? 0 : candidates)) * record;
}

void read_level(const NgramLevelFile& level, std::size_t record_bytes,
                const std::function<void(std::span<const std::byte>)>& visit) {
  const SpillFile file = SpillFile::open(level.path);
  std::vector<std::byte> block(record_bytes * 4096);
  const std::int64_t total = level.records * static_cast<std::int64_t>(record_bytes);
  for (std::int64_t done = 0; done < total;) {
    const std::span<std::byte> here = std::span(block).first(static_cast<std::size_t>(
        std::min<std::int64_t>(total - done, static_cast<std::int64_t>(block.size()))));
    file.read(done, here);
    visit(here);
    done += static_cast<std::int64_t>(here.size());
  }
}

std::vector<NgramLevelFile> count_ngrams(Communicator& communicator, const TokenCorpus& corpus,
                                         const NgramCounterOptions& options, SpillFolder& spill) {
  if (options.max_length < 2 || options.min_count < 1) {
    throw std::invalid_argument("count_ngrams: max_length must be >= 2 and min_count >= 1");
  }
  Counting counting{communicator, corpus, options, spill};
  counting.bits = bits_of_token(corpus.vocabulary_size());
  if (counting.bits * options.max_length > longest_key_bits) {
    throw std::invalid_argument("count_ngrams: max_length tokens do not fit a key");
  }
  const std::int64_t tokens = corpus.tokens(), ranks = communicator.size();
  const auto boundary = [&](std::int64_t r) {
    return tokens / ranks * r + tokens % ranks * r / ranks;
  };
  counting.first = boundary(communicator.rank());
  counting.last = boundary(communicator.rank() + 1);
  counting.threads = omp_get_max_threads();
  run_agreed(communicator, [&] {
    const std::int64_t in_use =
        std::max<std::int64_t>(0, private_memory_bytes() - options.program_bytes);
    check_memory(counting, in_use);
    counting.budget = options.memory_bytes - in_use;
  });

  NgramLevelList list(spill.path(), corpus, options, communicator.size(), counting.bits);
  std::vector<NgramLevelFile> levels;
  run_agreed(communicator, [&] { levels = list.read(); });
  // Ranks go on from where the last of them was.
  levels.resize(static_cast<std::size_t>(
      communicator.all_reduce_value(static_cast<std::int64_t>(levels.size()), ReduceOp::min)));
  run_agreed(communicator, [&] {
    std::vector<std::string> kept{NgramLevelList::file_name};
    for (const NgramLevelFile& level : levels) kept.push_back(level.path.filename());
    spill.keep_only(kept);
    list.write(levels);
  });
  const auto report_done = [&](const NgramLevelFile& level, bool from_before) {
    if (!options.progress) return;
    NgramProgress progress{level.length - 1, options.max_length - 1};
    progress.tokens = progress.tokens_total = counting.positions();
    progress.ngrams = level.total;
    progress.from_before = from_before;
    progress.spilled_bytes = level.spilled_bytes;
    options.progress(progress);
  };
  for (const NgramLevelFile& level : levels) report_done(level, true);
  while (static_cast<int>(levels.size()) + 1 < options.max_length &&
         (levels.empty() || levels.back().total > 0)) {
    const int length = static_cast<int>(levels.size()) + 2;
    std::unique_ptr<NgramFilter> filter;
    if (!levels.empty()) filter = filter_of(counting, levels.back());
    levels.push_back(with_key_words(length, counting.bits, [&]<int Words>() {
      return Scan<Words>(counting, length, filter.get()).run();
    }));
    run_agreed(communicator, [&] { list.write(levels); });
    report_done(levels.back(), false);
  }
  while (!levels.empty() && levels.back().total == 0) levels.pop_back();
  return levels;
}

}  // namespace scone
