#pragma once

#include <filesystem>
#include <memory>

#include "data/file_lock.h"

namespace scone {

/// A folder of `scone tokenize` while it is made: train/, validation/ and the tokenizer are written
/// into a hidden folder inside it and take their places when all is whole. Where publish() is not
/// reached, what was there before stays as it was, and nothing new does.
class DatasetFolder {
 public:
  /// Creates `output` where there is none, and keeps others out of it. tokenizer: the file that
  /// will be copied into it, which may lie in it already. Throws InputError: it is a file, or
  /// cannot be created or written; another scone tokenize writes it; something that is not of one
  /// would be replaced.
  explicit DatasetFolder(const std::filesystem::path& output,
                         const std::filesystem::path& tokenizer = {});
  /// The same folder on another rank, which leaves making, publishing and removing to the first.
  static std::unique_ptr<DatasetFolder> join(const std::filesystem::path& output);
  ~DatasetFolder();
  DatasetFolder(const DatasetFolder&) = delete;
  DatasetFolder& operator=(const DatasetFolder&) = delete;

  // Where to write until then.
  std::filesystem::path train() const { return staging_ / "train"; }
  std::filesystem::path validation() const { return staging_ / "validation"; }
  std::filesystem::path spill() const { return staging_ / "spill"; }  // for what comes between
  std::filesystem::path tokenizer_model() const { return staging_ / "tokenizer.model"; }
  /// Copies the tokenizer's file as tokenizer.json or tokenizer.model, whichever it is. Throws
  /// InputError.
  void copy_tokenizer(const std::filesystem::path& file);

  /// Replaces the shards and the tokenizer of an earlier run; other files stay. Throws InputError.
  void publish();

 private:
  struct Joined {};
  DatasetFolder(const std::filesystem::path& output, Joined);
  std::filesystem::path output_, staging_;
  bool joined_ = false;  // leaves all that is there to others
  bool made_output_ = false;
  std::unique_ptr<FileLock> lock_;
};

}  // namespace scone
