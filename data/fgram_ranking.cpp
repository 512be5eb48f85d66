#include "data/fgram_ranking.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>

#include "data/external_sorter.h"
#include "data/spill_reader.h"
#include "parallel/agreed_errors.h"
#include "parallel/error.h"

namespace scone {
namespace {

/// An f-gram before its id is known. place: shorter before longer, lexicographic inside a length.
struct Placed {
  std::uint64_t count;
  std::uint32_t place, prefix;  // prefix: its place; of a 2-gram the token
  std::uint32_t last_token;
  std::uint32_t length;
};
struct ByRank {
  bool operator()(const Placed& a, const Placed& b) const {
    return a.count != b.count ? a.count > b.count : a.place < b.place;
  }
};
struct ByKey {
  template <int Words>
  bool operator()(const NgramRecord<Words>& a, const NgramRecord<Words>& b) const {
    return a.key < b.key;
  }
};

/// Numbers in a temporary file, mapped: the system keeps of it what memory there is.
class MappedNumbers {
 public:
  MappedNumbers(const std::filesystem::path& path, std::int64_t size)
      : file_(SpillFile::create(path, /*named=*/false)),
        bytes_(static_cast<std::size_t>(std::max<std::int64_t>(size, 1)) * sizeof(std::uint32_t)) {
    // Space that was promised, since a write to a mapping cannot fail with an error.
    if (const int error = ::posix_fallocate(file_.descriptor(), 0, static_cast<off_t>(bytes_))) {
      throw InputError(fmt::format(
          "{}: {:.1f} MB for the f-grams' ids cannot be had: {}; give --spill a folder on a larger "
          "disk",
          path.string(), static_cast<double>(bytes_) / 1e6, std::strerror(error)));
    }
    void* data = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file_.descriptor(), 0);
    if (data == MAP_FAILED) {
      throw std::runtime_error(
          fmt::format("{}: cannot be mapped: {}", path.string(), std::strerror(errno)));
    }
    data_ = static_cast<std::uint32_t*>(data);
  }
  ~MappedNumbers() { ::munmap(data_, bytes_); }
  MappedNumbers(const MappedNumbers&) = delete;
  std::uint32_t& operator[](std::size_t i) { return data_[i]; }

 private:
  SpillFile file_;
  std::size_t bytes_;
  std::uint32_t* data_ = nullptr;
};

/// Brings the selected records of a level to rank 0, which is given them by add(record).
template <int Words, class Add>
void collect(Communicator& communicator, const NgramLevelFile& level,
             const FgramSelection& selection, std::int64_t bytes, const Add& add) {
  using Record = NgramRecord<Words>;
  const auto ranks = static_cast<std::size_t>(communicator.size());
  const auto block = static_cast<std::size_t>(std::max<std::int64_t>(
      1024, bytes / static_cast<std::int64_t>(sizeof(Record) * (ranks + 1))));
  std::optional<SpillFile> file;
  std::optional<SpillReader<Record>> reader;
  run_agreed(communicator, [&] {
    file.emplace(SpillFile::open(level.path));
    reader.emplace(*file, 0, static_cast<std::size_t>(level.records), 4096);
  });
  std::vector<Record> own;
  std::vector<std::int64_t> send_counts(ranks, 0);
  for (bool more = true; more;) {
    own.clear();
    const Record* record = nullptr;
    run_agreed(communicator, [&] {
      while (own.size() < block && (record = reader->next()) != nullptr)
        if (selection.holds(level.length, *record)) own.push_back(*record);
    });
    send_counts[0] = static_cast<std::int64_t>(own.size());
    const std::vector<std::int64_t> counts = communicator.exchange_counts(send_counts);
    std::int64_t total = 0;
    for (const std::int64_t count : counts) total += count;
    std::vector<Record> received(static_cast<std::size_t>(total));
    communicator.all_to_all(std::as_bytes(std::span(own)), send_counts,
                            std::as_writable_bytes(std::span(received)), counts, sizeof(Record));
    run_agreed(communicator, [&] {
      for (const Record& one : received) add(one);
    });
    more = communicator.all_reduce_value(std::int64_t{record != nullptr}, ReduceOp::max) != 0;
  }
}

/// The ordering of rank 0's f-grams.
class Ranking {
 public:
  Ranking(int bits, std::int64_t memory_bytes, const std::filesystem::path& folder)
      : bits_(bits),
        memory_(memory_bytes),
        folder_(folder),
        placed_(folder / "placed", memory_bytes / 3, ByRank{}) {}

  template <int Words>
  class Level {
   public:
    Level(Ranking& ranking, int length)
        : ranking_(ranking),
          length_(length),
          sorter_(ranking.folder_ / fmt::format("keys-{}", length), ranking.memory_ / 3, ByKey{}) {}
    void add(const NgramRecord<Words>& record) { sorter_.add(record); }

    /// Finds each f-gram's prefix in the level before, whose keys come in the same order.
    void place() {
      auto keys = std::make_unique<SpillFile>(
          SpillFile::create(ranking_.folder_ / fmt::format("places-{}", length_), /*named=*/false));
      std::optional<SpillReader<NgramKey<4>>> before;
      const NgramKey<4>* prefix_key = nullptr;
      std::uint32_t prefix_place = ranking_.level_begin_;
      if (length_ > 2) {
        before.emplace(*ranking_.keys_, 0, ranking_.end_ - ranking_.level_begin_, 4096);
        prefix_key = before->next();
      }
      const std::uint32_t begin = ranking_.end_;
      std::vector<NgramKey<4>> block;
      sorter_.drain([&](const NgramRecord<Words>& record) {
        NgramKey<4> key = FgramSelection::widened(record.key);
        block.push_back(key);
        if (block.size() == 4096) {
          keys->append(std::as_bytes(std::span(block)));
          block.clear();
        }
        Placed placed{record.count, ranking_.end_++, 0, key.last_token(ranking_.bits_),
                      static_cast<std::uint32_t>(length_)};
        key.drop_last(ranking_.bits_);
        if (length_ == 2) {
          placed.prefix = static_cast<std::uint32_t>(key.words[3]);
        } else {
          while (prefix_key != nullptr && *prefix_key < key) {
            prefix_key = before->next();
            ++prefix_place;
          }
          if (prefix_key == nullptr || *prefix_key != key)
            throw std::logic_error("an f-gram's prefix is not among the f-grams");
          placed.prefix = prefix_place;
        }
        ranking_.placed_.add(placed);
      });
      keys->append(std::as_bytes(std::span(block)));
      ranking_.keys_ = std::move(keys);
      ranking_.level_begin_ = begin;
    }

   private:
    Ranking& ranking_;
    const int length_;
    ExternalSorter<NgramRecord<Words>, ByKey> sorter_;
  };

  void take_all(std::int64_t token_vocabulary_size,
                const std::function<void(const FgramRow&)>& take) {
    MappedNumbers id_of(folder_ / "ids", end_);
    std::uint32_t id = 0;
    placed_.drain([&](const Placed& placed) {
      id_of[placed.place] = id++;
      // A prefix occurs no less often and is shorter, so it has its id already.
      const std::uint32_t prefix =
          placed.length == 2
              ? placed.prefix
              : static_cast<std::uint32_t>(token_vocabulary_size) + id_of[placed.prefix];
      take({prefix, placed.last_token, static_cast<std::uint8_t>(placed.length), placed.count});
    });
  }

 private:
  const int bits_;
  const std::int64_t memory_;
  const std::filesystem::path folder_;
  ExternalSorter<Placed, ByRank> placed_;
  std::uint32_t level_begin_ = 0, end_ = 0;  // places of the last level
  std::unique_ptr<SpillFile> keys_;          // its keys, ascending
};

}  // namespace

void rank_fgrams(Communicator& communicator, const std::vector<NgramLevelFile>& levels, int bits,
                 const FgramSelection& selection, std::int64_t token_vocabulary_size,
                 std::int64_t memory_bytes, SpillFolder& spill,
                 const std::function<void(const FgramRow&)>& take) {
  const bool root = communicator.rank() == 0;
  std::optional<Ranking> ranking;
  if (root) ranking.emplace(bits, memory_bytes, spill.path());
  for (const NgramLevelFile& level : levels) {
    with_key_words(level.length, bits, [&]<int Words>() {
      std::optional<typename Ranking::template Level<Words>> own;
      if (root) own.emplace(*ranking, level.length);
      collect<Words>(communicator, level, selection, memory_bytes / 6,
                     [&](const NgramRecord<Words>& record) { own->add(record); });
      run_agreed(communicator, [&] {
        if (root) own->place();
      });
    });
  }
  run_agreed(communicator, [&] {
    if (root) ranking->take_all(token_vocabulary_size, take);
  });
}

}  // namespace scone
