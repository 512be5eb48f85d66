#include "data/dataset_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <system_error>

#include "data/shard_list.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void cannot_write(const fs::path& output, const std::string& problem) {
  throw InputError(
      fmt::format("--output {}: expected a folder that can be written, found: {}; give another one",
                  output.string(), problem));
}

/// Makes a file last through a crash of the machine, and finds write errors that came late.
void sync_file(const fs::path& file) {
  const int descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  const bool good = descriptor >= 0 && ::fsync(descriptor) == 0;
  const int error = errno;
  if (descriptor >= 0) ::close(descriptor);
  if (!good) {
    throw InputError(
        fmt::format("{}: cannot be written: {}; free some space, or give another "
                    "--output",
                    file.string(), std::strerror(error)));
  }
}

/// Replaces the shards of `target`, and their list, by those of `made`; a folder left empty goes.
void publish_shards(const fs::path& made, const fs::path& target) {
  if (fs::is_directory(target)) {
    fs::remove(target / kShardListName);
    for (const auto& entry : fs::directory_iterator(target)) {
      if (entry.path().extension() == ".h5") fs::remove(entry.path());
    }
  }
  fs::create_directories(target);
  for (const auto& entry : fs::directory_iterator(made)) {
    if (entry.path().extension() == ".h5")
      fs::rename(entry.path(), target / entry.path().filename());
  }
  // The list comes last: while it is not there, nothing is expected of the folder.
  if (fs::exists(made / kShardListName)) {
    fs::rename(made / kShardListName, target / kShardListName);
  } else if (fs::is_empty(target)) {
    fs::remove(target);
  }
}

const char* tokenizer_name(const fs::path& file) {
  if (file.extension() == ".json") return "tokenizer.json";
  if (file.extension() == ".model") return "tokenizer.model";
  return std::ifstream(file, std::ios::binary).peek() == '{' ? "tokenizer.json" : "tokenizer.model";
}

}  // namespace

DatasetFolder::DatasetFolder(const fs::path& output, Joined)
    : output_(output), staging_(output / ".tokenize.partial"), joined_(true) {}

std::unique_ptr<DatasetFolder> DatasetFolder::join(const fs::path& output) {
  return std::unique_ptr<DatasetFolder>(new DatasetFolder(output, Joined()));
}

DatasetFolder::DatasetFolder(const fs::path& output) : DatasetFolder(output, Joined()) {
  joined_ = false;
  std::error_code error;
  if (fs::exists(output, error) && !fs::is_directory(output, error)) {
    cannot_write(output, "a file");
  }
  made_output_ = fs::create_directories(output, error);
  if (error) cannot_write(output, error.message());
  fs::remove_all(staging_, error);  // of a run that was killed
  if (!error) fs::create_directories(train(), error);
  if (!error) fs::create_directories(validation(), error);
  if (!error) fs::create_directories(spill(), error);
  if (error) {
    std::error_code ignored;
    if (made_output_) fs::remove(output, ignored);
    cannot_write(output, error.message());
  }
}

DatasetFolder::~DatasetFolder() {
  if (joined_) return;
  std::error_code ignored;
  fs::remove_all(staging_, ignored);
  if (made_output_ && fs::is_empty(output_, ignored)) fs::remove(output_, ignored);
}

void DatasetFolder::copy_tokenizer(const fs::path& file) {
  std::error_code error;
  fs::copy_file(file, staging_ / tokenizer_name(file), error);
  if (error) {
    throw InputError(fmt::format("{}: cannot be copied into {}: {}", file.string(),
                                 output_.string(), error.message()));
  }
}

void DatasetFolder::publish() {
  try {
    for (const auto& folder : {train(), validation()}) {
      if (!fs::is_empty(folder)) write_shard_list(folder);
    }
    for (const auto& entry : fs::recursive_directory_iterator(staging_)) {
      if (entry.is_regular_file()) sync_file(entry.path());
    }
    publish_shards(train(), output_ / "train");
    publish_shards(validation(), output_ / "validation");
    for (const char* name : {"tokenizer.json", "tokenizer.model"}) {
      if (fs::exists(staging_ / name)) {
        fs::rename(staging_ / name, output_ / name);
      } else {
        fs::remove(output_ / name);
      }
    }
  } catch (const fs::filesystem_error& error) {
    cannot_write(output_, error.what());
  }
}

}  // namespace scone
