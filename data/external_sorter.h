#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <queue>
#include <utility>
#include <vector>

#include "data/memory_budget.h"
#include "data/spill_folder.h"
#include "data/spill_reader.h"

namespace scone {

/// Sorts more records than fit in memory: sorted runs in a temporary file, merged as they are read.
template <class Record, class Less>
class ExternalSorter {
 public:
  /// file: a path for the runs, made where they are needed. bytes: memory to hold, at least
  /// two records.
  ExternalSorter(std::filesystem::path file, std::int64_t bytes, Less less)
      : path_(std::move(file)),
        less_(less),
        records_(static_cast<std::size_t>(
            std::max<std::int64_t>(2, bytes / static_cast<std::int64_t>(sizeof(Record))))) {}

  void add(const Record& record) {
    if (used_ == records_.size()) spill();
    records_[used_++] = record;
  }

  /// Calls visit(record) for all, ascending; once.
  template <class Visit>
  void drain(const Visit& visit) {
    const std::span<Record> rest = records_.span().first(used_);
    std::sort(rest.begin(), rest.end(), less_);
    if (runs_.empty()) {
      for (const Record& record : rest) visit(record);
      return;
    }
    if (used_ > 0) spill();
    const std::size_t buffer = records_.size() / runs_.size();
    records_ = PageBuffer<Record>();
    std::vector<SpillReader<Record>> readers;
    readers.reserve(runs_.size());
    for (const Run& run : runs_) readers.emplace_back(*file_, run.offset, run.records, buffer);
    const auto later = [this](const Head& a, const Head& b) { return less_(*b.record, *a.record); };
    std::priority_queue<Head, std::vector<Head>, decltype(later)> heads(later);
    for (auto& reader : readers)
      if (const Record* record = reader.next()) heads.push({record, &reader});
    while (!heads.empty()) {
      const Head head = heads.top();
      heads.pop();
      visit(*head.record);
      if (const Record* record = head.source->next()) heads.push({record, head.source});
    }
  }

 private:
  struct Run {
    std::int64_t offset;
    std::size_t records;
  };
  struct Head {
    const Record* record;
    SpillReader<Record>* source;
  };

  void spill() {
    if (!file_) file_.emplace(SpillFile::create(path_, /*named=*/false));
    const std::span<Record> records = records_.span().first(used_);
    std::sort(records.begin(), records.end(), less_);
    runs_.push_back({file_->append(std::as_bytes(records)), records.size()});
    used_ = 0;
  }

  std::filesystem::path path_;
  Less less_;
  PageBuffer<Record> records_;
  std::size_t used_ = 0;
  std::optional<SpillFile> file_;
  std::vector<Run> runs_;
};

}  // namespace scone
