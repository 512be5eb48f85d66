// Other stores of the rows of f-grams, beside `scone bench table`, which runs this program:
//   scone_table_peers FOLDER ROW_BYTES STORE build                   prints seconds and bytes on
//   disk scone_table_peers FOLDER ROW_BYTES STORE warm|cold BATCH COUNT   prints look-ups a second
// STORE: lmdb, rocksdb, or hash (std::unordered_map in RAM beside a mapped file of rows). FOLDER
// holds `keys`, the f-grams in the order of their ids, and `lookups`.
#include <fcntl.h>
#include <lmdb.h>
#include <rocksdb/db.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/sst_file_writer.h>
#include <rocksdb/table.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <unordered_map>

#include "launch/bench_table_data.h"

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using scone::NgramList;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Tokens as big-endian numbers of four bytes.
std::string packed(std::span<const std::int32_t> ngram) {
  std::string key;
  for (const std::int32_t token : ngram)
    for (int shift = 24; shift >= 0; shift -= 8)
      key.push_back(static_cast<char>(static_cast<std::uint32_t>(token) >> shift & 0xFFU));
  return key;
}

/// Calls add(key, id) in the order of the keys.
void for_each_key(const NgramList& keys,
                  const std::function<void(const std::string&, std::int64_t)>& add) {
  std::vector<std::string> all(keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) all[i] = packed(keys[i]);
  std::vector<std::size_t> order(keys.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return all[a] < all[b]; });
  for (const std::size_t i : order) add(all[i], static_cast<std::int64_t>(i));
}

class Store {
 public:
  virtual ~Store() = default;
  virtual void build(const NgramList& keys) = 0;
  virtual void open(const NgramList& keys) = 0;
  /// Copies the rows of the packed keys into `rows`.
  virtual void lookup(std::span<const std::string> keys, std::byte* rows) = 0;
};

void check(int error, const char* what) {
  if (error != 0) throw std::runtime_error(std::string(what) + ": " + mdb_strerror(error));
}

class Lmdb final : public Store {
 public:
  Lmdb(fs::path folder, std::size_t row) : folder_(std::move(folder)), row_(row) {}
  ~Lmdb() override {
    if (reading_ != nullptr) mdb_txn_abort(reading_);
    if (environment_ != nullptr) mdb_env_close(environment_);
  }
  void build(const NgramList& keys) override {
    fs::create_directories(folder_);
    open_environment(MDB_NOSYNC, keys.size() * (row_ + 4096) * 2 + (std::size_t{1} << 30));
    std::vector<std::byte> row(row_);
    MDB_txn* writing = nullptr;
    check(mdb_txn_begin(environment_, nullptr, 0, &writing), "mdb_txn_begin");
    MDB_dbi rows = 0;
    check(mdb_dbi_open(writing, nullptr, 0, &rows), "mdb_dbi_open");
    std::size_t added = 0;
    for_each_key(keys, [&](const std::string& key, std::int64_t id) {
      scone::fill_row(id, row);
      MDB_val of_key{key.size(), const_cast<char*>(key.data())}, value{row_, row.data()};
      check(mdb_put(writing, rows, &of_key, &value, MDB_APPEND), "mdb_put");
      if (++added % 100000 == 0) {
        check(mdb_txn_commit(writing), "mdb_txn_commit");
        check(mdb_txn_begin(environment_, nullptr, 0, &writing), "mdb_txn_begin");
      }
    });
    check(mdb_txn_commit(writing), "mdb_txn_commit");
    check(mdb_env_sync(environment_, 1), "mdb_env_sync");
  }
  void open(const NgramList&) override {
    open_environment(MDB_RDONLY | MDB_NORDAHEAD | MDB_NOLOCK, 0);
    check(mdb_txn_begin(environment_, nullptr, MDB_RDONLY, &reading_), "mdb_txn_begin");
    check(mdb_dbi_open(reading_, nullptr, 0, &rows_), "mdb_dbi_open");
  }
  void lookup(std::span<const std::string> keys, std::byte* out) override {
    for (std::size_t i = 0; i < keys.size(); ++i) {
      MDB_val key{keys[i].size(), const_cast<char*>(keys[i].data())}, value{};
      check(mdb_get(reading_, rows_, &key, &value), "mdb_get");
      std::memcpy(out + i * row_, value.mv_data, row_);
    }
  }

 private:
  void open_environment(unsigned flags, std::size_t most) {
    check(mdb_env_create(&environment_), "mdb_env_create");
    if (most > 0) check(mdb_env_set_mapsize(environment_, most), "mdb_env_set_mapsize");
    check(mdb_env_open(environment_, folder_.c_str(), flags, 0644), "mdb_env_open");
  }
  fs::path folder_;
  std::size_t row_;
  MDB_env* environment_ = nullptr;
  MDB_txn* reading_ = nullptr;
  MDB_dbi rows_ = 0;
};

class Rocks final : public Store {
 public:
  Rocks(fs::path folder, std::size_t row) : folder_(std::move(folder)), row_(row) {
    rocksdb::BlockBasedTableOptions table;
    table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
    table.block_cache = rocksdb::NewLRUCache(std::size_t{6} << 30);
    options_.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
    options_.compression = rocksdb::kNoCompression;
    options_.create_if_missing = true;
  }
  void build(const NgramList& keys) override {
    rocksdb::SstFileWriter writer(rocksdb::EnvOptions(), options_);
    const std::string file = folder_.string() + ".sst";
    check(writer.Open(file));
    std::string row(row_, '\0');
    for_each_key(keys, [&](const std::string& key, std::int64_t id) {
      scone::fill_row(id, std::as_writable_bytes(std::span(row)));
      check(writer.Put(key, row));
    });
    check(writer.Finish());
    open(keys);
    rocksdb::IngestExternalFileOptions move;
    move.move_files = true;
    check(store_->IngestExternalFile({file}, move));
    check(store_->SyncWAL());
  }
  void open(const NgramList&) override {
    rocksdb::DB* opened = nullptr;
    check(rocksdb::DB::Open(options_, folder_.string(), &opened));
    store_.reset(opened);
  }
  void lookup(std::span<const std::string> keys, std::byte* out) override {
    if (keys.size() == 1) {
      rocksdb::PinnableSlice value;
      check(store_->Get({}, store_->DefaultColumnFamily(), keys[0], &value));
      std::memcpy(out, value.data(), row_);
      return;
    }
    std::vector<rocksdb::Slice> slices(keys.begin(), keys.end());
    std::vector<rocksdb::PinnableSlice> values(keys.size());
    std::vector<rocksdb::Status> states(keys.size());
    store_->MultiGet({}, store_->DefaultColumnFamily(), keys.size(), slices.data(), values.data(),
                     states.data());
    for (std::size_t i = 0; i < keys.size(); ++i) {
      check(states[i]);
      std::memcpy(out + i * row_, values[i].data(), row_);
    }
  }

 private:
  static void check(const rocksdb::Status& status) {
    if (!status.ok()) throw std::runtime_error("rocksdb: " + status.ToString());
  }
  fs::path folder_;
  std::size_t row_;
  rocksdb::Options options_;
  std::unique_ptr<rocksdb::DB> store_;
};

class Hash final : public Store {
 public:
  Hash(fs::path folder, std::size_t row) : path_(folder / "rows"), row_(row) {}
  ~Hash() override {
    if (mapping_ != MAP_FAILED) ::munmap(mapping_, bytes_);
  }
  void build(const NgramList& keys) override {
    fs::create_directories(path_.parent_path());
    std::ofstream file(path_, std::ios::binary);
    std::vector<std::byte> row(row_);
    for (std::size_t id = 0; id < keys.size(); ++id) {
      scone::fill_row(static_cast<std::int64_t>(id), row);
      file.write(reinterpret_cast<const char*>(row.data()), static_cast<std::streamsize>(row_));
    }
    if (!file.flush()) throw std::runtime_error(path_.string() + ": cannot be written");
    file.close();
    const int descriptor = ::open(path_.c_str(), O_RDONLY);
    if (::fsync(descriptor) != 0) throw std::runtime_error(path_.string() + ": cannot be synced");
    ::close(descriptor);
  }
  void open(const NgramList& keys) override {
    ids_.reserve(keys.size());
    for (std::size_t id = 0; id < keys.size(); ++id) ids_[packed(keys[id])] = id;
    bytes_ = keys.size() * row_;
    const int descriptor = ::open(path_.c_str(), O_RDONLY);
    mapping_ = ::mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, descriptor, 0);
    ::close(descriptor);
    if (mapping_ == MAP_FAILED) throw std::runtime_error(path_.string() + ": cannot be mapped");
    ::madvise(mapping_, bytes_, MADV_RANDOM);
  }
  void lookup(std::span<const std::string> keys, std::byte* out) override {
    for (std::size_t i = 0; i < keys.size(); ++i)
      std::memcpy(out + i * row_, static_cast<const std::byte*>(mapping_) + ids_.at(keys[i]) * row_,
                  row_);
  }

 private:
  fs::path path_;
  std::size_t row_, bytes_ = 0;
  void* mapping_ = MAP_FAILED;
  std::unordered_map<std::string, std::size_t> ids_;
};

std::unique_ptr<Store> make_store(const std::string& name, const fs::path& folder,
                                  std::size_t row) {
  if (name == "lmdb") return std::make_unique<Lmdb>(folder, row);
  if (name == "rocksdb") return std::make_unique<Rocks>(folder, row);
  if (name == "hash") return std::make_unique<Hash>(folder, row);
  throw std::invalid_argument("no such store: " + name);
}

double rate_of(Store& store, const NgramList& lookups, std::size_t row, std::size_t batch,
               std::size_t count) {
  std::vector<std::string> keys(lookups.size());  // packed ahead: packing is not the store's
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = packed(lookups[i]);
  std::vector<std::byte> rows(batch * row);
  double seconds = 0;
  std::size_t done = 0;
  for (; done + batch <= std::min(count, keys.size()); done += batch) {
    const auto start = Clock::now();
    store.lookup(std::span(keys).subspan(done, batch), rows.data());
    seconds += seconds_since(start);
  }
  return static_cast<double>(done) / seconds;
}

std::int64_t disk_bytes(const fs::path& folder) {
  std::int64_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) bytes += static_cast<std::int64_t>(entry.file_size());
  return bytes;
}

}  // namespace

int main(int count, char** arguments) try {
  const std::vector<std::string> words(arguments + 1, arguments + count);
  const fs::path folder = words.at(0);
  const std::size_t row = std::stoul(words.at(1));
  const fs::path own = folder / words.at(2);
  const auto store = make_store(words.at(2), own, row);
  const NgramList keys = scone::read_ngrams(folder / "keys");
  if (words.at(3) == "build") {
    const auto start = Clock::now();
    store->build(keys);
    std::printf("%f %ld\n", seconds_since(start), static_cast<long>(disk_bytes(own)));
    return 0;
  }
  const NgramList lookups = scone::read_ngrams(folder / "lookups");
  const std::size_t batch = std::stoul(words.at(4)), most = std::stoul(words.at(5));
  store->open(keys);
  if (words.at(3) == "warm") rate_of(*store, lookups, row, batch, most);
  std::printf("%f\n", rate_of(*store, lookups, row, batch, most));
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "scone_table_peers: %s\n", error.what());
  return 1;
}
