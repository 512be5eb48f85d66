#include "data/dataset_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <set>
#include <string>
#include <system_error>

#include "data/hdf5_file.h"
#include "data/shard_list.h"
#include "data/token_shard.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

constexpr std::array<const char*, 2> kTokenizerNames = {"tokenizer.json", "tokenizer.model"};

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

bool is_shard(const fs::path& file) {
  try {
    const Hdf5File shard = Hdf5File::open(file);
    return shard.has_attribute("format") && shard.string_attribute("format") == kTokenShardFormat;
  } catch (const std::exception&) {
    return false;
  }
}

/// Whether scone tokenize has written the folder before. Throws InputError where it holds HDF5
/// files of others.
bool is_our_folder(const fs::path& output, const fs::path& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) return false;
  std::set<std::string> listed;
  try {
    for (const ListedShard& shard : read_shard_list(folder)) listed.insert(shard.file);
  } catch (const InputError&) {  // a damaged one is replaced
  }
  bool is_ours = fs::exists(folder / kShardListName);
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".h5") continue;
    if (listed.contains(entry.path().filename().string()) || is_shard(entry.path())) {
      is_ours = true;
      continue;
    }
    throw InputError(
        fmt::format("--output {}: {} is no token shard, and would be removed with the shards that "
                    "are replaced; move it away, or give another folder",
                    output.string(), entry.path().string()));
  }
  return is_ours;
}

/// Throws InputError where publishing would replace what is not of scone tokenize.
void refuse_others_files(const fs::path& output, const fs::path& tokenizer) {
  const bool in_train = is_our_folder(output, output / "train");
  const bool in_validation = is_our_folder(output, output / "validation");
  for (const char* name : kTokenizerNames) {
    const fs::path file = output / name;
    std::error_code error;
    if (in_train || in_validation || !fs::exists(file, error) ||
        (!tokenizer.empty() && fs::equivalent(file, tokenizer, error)))
      continue;
    throw InputError(
        fmt::format("--output {}: {} is there, but no shards of scone tokenize, so it is not "
                    "replaced; move it away, or give another folder",
                    output.string(), file.string()));
  }
}

/// Replaces the shards of `target`, and their list, by those of `made`; a folder left empty goes.
void publish_shards(const fs::path& made, const fs::path& target) {
  fs::create_directories(target);
  // The list comes first: where this is ended on the way, shards are missing by it, and nobody
  // takes those that are there for all.
  const bool any = fs::exists(made / kShardListName);
  if (any)
    fs::rename(made / kShardListName, target / kShardListName);
  else
    fs::remove(target / kShardListName);
  for (const auto& entry : fs::directory_iterator(target)) {
    if (entry.path().extension() == ".h5") fs::remove(entry.path());
  }
  for (const auto& entry : fs::directory_iterator(made)) {
    if (entry.path().extension() == ".h5")
      fs::rename(entry.path(), target / entry.path().filename());
  }
  if (!any && fs::is_empty(target)) fs::remove(target);
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

DatasetFolder::DatasetFolder(const fs::path& output, const fs::path& tokenizer)
    : DatasetFolder(output, Joined()) {
  std::error_code error;
  if (fs::exists(output, error) && !fs::is_directory(output, error)) {
    cannot_write(output, "a file");
  }
  made_output_ = fs::create_directories(output, error);
  if (error) cannot_write(output, error.message());
  lock_ = std::make_unique<FileLock>(output / ".tokenize.lock");
  if (lock_->outcome() == FileLock::Outcome::held_by_another)
    throw InputError(fmt::format(
        "--output {}: another scone tokenize writes there; wait for it, or give another folder",
        output.string()));
  joined_ = false;  // what is made from here on goes with this object
  if (lock_->outcome() == FileLock::Outcome::unsupported)
    spdlog::warn(
        "--output {}: the file system cannot lock it; see to it that no other scone "
        "tokenize writes there",
        output.string());
  refuse_others_files(output, tokenizer);
  fs::remove_all(staging_, error);  // of a run that was killed
  if (!error) fs::create_directories(train(), error);
  if (!error) fs::create_directories(validation(), error);
  if (!error) fs::create_directories(spill(), error);
  if (error) cannot_write(output, error.message());
}

DatasetFolder::~DatasetFolder() {
  if (joined_) return;
  std::error_code ignored;
  fs::remove_all(staging_, ignored);
  lock_->remove_file();
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
    for (const char* name : kTokenizerNames) {
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
