#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "data/spill_folder.h"

namespace scone {

/// Reads records of a temporary file one after another, a block at a time.
template <class Record>
class SpillReader {
 public:
  /// file: outlives this. The records begin at byte `offset`; buffer_records >= 1.
  SpillReader(const SpillFile& file, std::int64_t offset, std::size_t records,
              std::size_t buffer_records)
      : file_(&file),
        offset_(offset),
        left_(records),
        buffer_(std::max<std::size_t>(1, std::min(records, buffer_records))) {}

  /// The next record, which lasts until the next call; nullptr at the end.
  const Record* next() {
    if (at_ == end_) {
      if (left_ == 0) return nullptr;
      at_ = 0;
      end_ = std::min(buffer_.size(), left_);
      file_->read(offset_, std::as_writable_bytes(std::span(buffer_).first(end_)));
      offset_ += static_cast<std::int64_t>(end_ * sizeof(Record));
      left_ -= end_;
    }
    return &buffer_[at_++];
  }

 private:
  const SpillFile* file_;
  std::int64_t offset_;
  std::size_t left_;
  std::vector<Record> buffer_;
  std::size_t at_ = 0, end_ = 0;
};

}  // namespace scone
