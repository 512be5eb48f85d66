#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <queue>
#include <string>
#include <vector>

#include "data/memory_budget.h"
#include "data/ngram_filter.h"
#include "data/ngram_key.h"
#include "data/spill_folder.h"
#include "data/spill_reader.h"

namespace scone {

/// Counts the n-grams of one length that one rank owns, in partitions by hash. A partition is a
/// hash table that grows as long as the budget lasts; then it is sorted, spilled as a run and begun
/// anew, and at the end its runs are merged. One thread at a time uses a partition; several may use
/// different ones.
template <int Words>
class NgramStore {
 public:
  using Record = NgramRecord<Words>;
  static constexpr std::size_t first_slots = 64;  // of a partition

  /// budget, spill: outlive this. first_partition: of all ranks' partitions, this rank's first.
  NgramStore(std::size_t first_partition, std::size_t partitions, MemoryBudget& budget,
             SpillFile& spill)
      : first_partition_(first_partition), budget_(budget), spill_(spill), parts_(partitions) {}
  ~NgramStore() {
    for (const Partition& part : parts_) budget_.release(bytes_of(part.slots.size()));
  }
  NgramStore(const NgramStore&) = delete;

  std::size_t first_partition() const { return first_partition_; }
  std::size_t partitions() const { return parts_.size(); }

  /// Adds the records read(0), read(1), .. read(size - 1), all of the partition.
  template <class Read>
  void add(std::size_t partition, std::size_t size, const Read& read) {
    Partition& part = parts_[partition];
    constexpr std::size_t block = 16;  // so that cache misses overlap
    std::uint64_t hashes[block];
    for (std::size_t begin = 0; begin < size; begin += block) {
      const std::size_t end = std::min(begin + block, size);
      make_room(part, end - begin);
      for (std::size_t i = begin; i < end; ++i) {
        hashes[i - begin] = read(i).key.hash();
        __builtin_prefetch(&part.slots[slot_of(hashes[i - begin], part.slots.size())], 1);
      }
      for (std::size_t i = begin; i < end; ++i) upsert(part, read(i), hashes[i - begin]);
    }
  }

  /// Calls visit(record) for each n-gram of the partition counted at least min_count times, and
  /// empties the partition. merge_bytes: memory for merging.
  template <class Visit>
  void finish(std::size_t partition, std::uint64_t min_count, std::size_t merge_bytes,
              const Visit& visit) {
    Partition& part = parts_[partition];
    if (part.runs.empty()) {
      for (const Record& record : part.slots.span())
        if (record.count >= min_count) visit(record);
    } else {
      const std::size_t most_runs = std::max<std::size_t>(merge_bytes / smallest_buffer, 2);
      while (part.runs.size() > most_runs) merge_oldest(part, most_runs, merge_bytes);
      merge(part.runs, sorted(part), merge_bytes, [&](const Record& record) {
        if (record.count >= min_count) visit(record);
      });
    }
    budget_.release(bytes_of(part.slots.size()));
    part = Partition();
  }

  std::int64_t spilled_bytes() const { return spill_.size(); }

 private:
  struct Run {
    const SpillFile* file;
    std::int64_t offset;
    std::size_t records;
  };
  struct Partition {
    PageBuffer<Record> slots;  // open addressing, linear probing; count 0: free
    std::size_t used = 0;
    std::vector<Run> runs;  // sorted by key
    std::vector<std::unique_ptr<SpillFile>> merged;
  };
  static constexpr std::size_t smallest_buffer = 8192;

  static std::int64_t bytes_of(std::size_t slots) {
    return static_cast<std::int64_t>(slots * sizeof(Record));
  }
  static std::size_t slot_of(std::uint64_t hash, std::size_t slots) {
    return static_cast<std::size_t>((hash & 0xFFFFFFFFU) * slots >> 32U);
  }
  static std::size_t room(const Partition& part) { return part.slots.size() / 8 * 6; }

  static void upsert(Partition& part, const Record& record, std::uint64_t hash) {
    std::size_t slot = slot_of(hash, part.slots.size());
    for (;;) {
      Record& here = part.slots[slot];
      if (here.count == 0) {
        here = record;
        ++part.used;
        return;
      }
      if (here.key == record.key) {
        here.count += record.count;
        return;
      }
      if (++slot == part.slots.size()) slot = 0;
    }
  }

  void make_room(Partition& part, std::size_t records) {
    if (part.used + records <= room(part)) return;
    const std::size_t slots = part.slots.size();
    const std::size_t wanted = slots == 0     ? first_slots
                               : slots < 4096 ? 4 * slots
                                              : slots + slots / 2;
    // The first slots are always granted: the counter's least memory has them.
    if (budget_.try_reserve(bytes_of(wanted))) {
      grow(part, wanted);
    } else if (slots == 0) {
      budget_.release(-bytes_of(first_slots));
      grow(part, first_slots);
    } else {
      spill(part);
    }
  }

  void grow(Partition& part, std::size_t slots) {
    PageBuffer<Record> old(slots);
    std::swap(old, part.slots);
    part.used = 0;
    for (const Record& record : old.span())
      if (record.count > 0) upsert(part, record, record.key.hash());
    budget_.release(bytes_of(old.size()));
  }

  /// Moves the records to the front, sorted.
  static std::span<Record> sorted(Partition& part) {
    std::size_t kept = 0;
    for (std::size_t slot = 0; slot < part.slots.size(); ++slot)
      if (part.slots[slot].count > 0) part.slots[kept++] = part.slots[slot];
    const std::span<Record> records = part.slots.span().first(kept);
    std::sort(records.begin(), records.end(),
              [](const Record& a, const Record& b) { return a.key < b.key; });
    return records;
  }

  void spill(Partition& part) {
    const std::span<Record> records = sorted(part);
    part.runs.push_back({&spill_, spill_.append(std::as_bytes(records)), records.size()});
    std::memset(static_cast<void*>(part.slots.data()), 0, part.slots.size() * sizeof(Record));
    part.used = 0;
  }

  /// Calls visit for each distinct key of the runs and of `rest`, ascending, with its sum.
  template <class Visit>
  void merge(std::span<const Run> runs, std::span<const Record> rest, std::size_t bytes,
             const Visit& visit) {
    const std::size_t buffer =
        std::max<std::size_t>(bytes / std::max<std::size_t>(runs.size(), 1) / sizeof(Record), 64);
    std::vector<SpillReader<Record>> readers;
    readers.reserve(runs.size());
    for (const Run& run : runs)
      readers.emplace_back(*run.file, run.offset, run.records,
                           std::min(buffer, std::size_t{16384}));
    struct Head {
      const Record* record;
      std::size_t source;
    };
    const auto later = [](const Head& a, const Head& b) { return b.record->key < a.record->key; };
    std::priority_queue<Head, std::vector<Head>, decltype(later)> heads(later);
    std::size_t at = 0;
    const auto advance = [&](std::size_t source) {
      const Record* record = nullptr;
      if (source < readers.size()) {
        record = readers[source].next();
      } else if (at < rest.size()) {
        record = &rest[at++];
      }
      if (record != nullptr) heads.push({record, source});
    };
    for (std::size_t source = 0; source <= readers.size(); ++source) advance(source);
    while (!heads.empty()) {
      Record sum = *heads.top().record;
      sum.count = 0;
      while (!heads.empty() && heads.top().record->key == sum.key) {
        const Head head = heads.top();
        heads.pop();
        sum.count += head.record->count;
        advance(head.source);
      }
      visit(sum);
    }
  }

  /// The first `runs` runs become one, behind the others, in a file of its own.
  void merge_oldest(Partition& part, std::size_t runs, std::size_t bytes) {
    auto merged = std::make_unique<SpillFile>(SpillFile::create(
        spill_.path().string() + "-" + std::to_string(&part - parts_.data()), false));
    std::vector<Record> block;
    block.reserve(smallest_buffer / sizeof(Record));
    const auto write_block = [&] {
      merged->append(std::as_bytes(std::span(block)));
      block.clear();
    };
    merge(std::span<const Run>(part.runs).first(runs), {}, bytes, [&](const Record& record) {
      block.push_back(record);
      if (block.size() == block.capacity()) write_block();
    });
    write_block();
    part.runs.erase(part.runs.begin(), part.runs.begin() + static_cast<std::ptrdiff_t>(runs));
    const auto records = static_cast<std::size_t>(merged->size()) / sizeof(Record);
    part.runs.push_back({merged.get(), 0, records});
    part.merged.push_back(std::move(merged));
  }

  std::size_t first_partition_;
  MemoryBudget& budget_;
  SpillFile& spill_;
  std::vector<Partition> parts_;
};

}  // namespace scone
